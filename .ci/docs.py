"""Build the documentation site, or README.md, from the notebooks, without Quarto.

    python .ci/docs.py site [--jobs N]      pages in _site/html, every internal link checked
    python .ci/docs.py readme [--check]     README.md from nbs/index.ipynb

`nbdev_docs` renders the same notebooks with Quarto. This command needs Python packages only and no network, so it is
what CI runs. nbdev prepares the notebooks (`proc_nbs`), Sphinx with myst-nb and furo renders them; title, navigation
and addresses are read from `_quarto.yml`, so that file is exercised here too. Anchors are made as Quarto makes them.
"""
import argparse
import json
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nbdev.serve import proc_nbs

from docs_pages import (DROPPED, DocsError, body, dropped_prose, markdown_cell, read_project, readme_text, sections, sidebar_faults,
                        sphinx_notebook, symbols, toctree)
from docs_sphinx import run_sphinx


# ---- The built site --------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    "The anchors of an HTML page, where its links lead, and what a browser loads to show it"

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = {'', 'top'}, [], []
        self.feed(path.read_text('utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ('id', 'name') if attrs.get(key)}
        loads = tag != 'a' and (tag != 'link' or attrs.get('rel') in ('stylesheet', 'icon', 'preload'))
        for key in ('href', 'src', 'data'):
            if attrs.get(key): (self.loaded if loads else self.links).append(attrs[key])


def link_faults(out):
    "Links to files or anchors that are not in the site, and anything that would be fetched from the network"
    pages = {path: Page(path) for path in sorted(out.rglob('*.html'))}
    for path, page in pages.items():
        name = path.relative_to(out).as_posix()
        for link in dict.fromkeys(page.links + page.loaded):
            url = urlsplit(link)
            if url.scheme == 'data': continue
            if url.scheme or url.netloc:
                if link in page.loaded: yield f'{name}: fetches {link} from the network'
                continue
            # A folder is no target: a browser that reads files, not a server's answers, would list it.
            goal = Path(os.path.normpath(path.parent/unquote(url.path))) if url.path else path
            if not goal.is_file(): yield f'{name}: dead link to {link}'
            elif goal in pages and unquote(url.fragment) not in pages[goal].anchors: yield f'{name}: no such anchor, {link}'


def missing_pages(project, out):
    "Notebooks without a page"
    return [f'{book}: has no page {page}' for book, page in project.pages.items() if not (out/page).is_file()]


# ---- Commands --------------------------------------------------------------------------------------------------------

def processed(project):
    "Every notebook as nbdev prepares it, by its path, with the folder they are in"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', UserWarning)
        try: folder = proc_nbs(n_workers=0, force=True)
        except Exception as e: raise DocsError(f'nbdev cannot process a notebook: {e}\n{e.__cause__ or ""}') from e
    mixed = [w for w in caught if 'imports and other code' in str(w.message)]
    if mixed: print(f'note: {len(mixed)} cells mix imports with other code; nbdev runs all of it while it makes the pages')
    return folder, {book: json.loads((folder/book).read_text('utf-8')) for book in project.pages}


def notebook_faults(project, books):
    "Failed runs, which are never published, and prose that nbdev drops without a word"
    for book, nb in books.items():
        for cell, _, found in body(nb):
            failed = any(output['output_type'] == 'error' for output in cell.get('outputs', []))
            if failed and found.get('error') is not True: yield f'{book}: holds the output of a cell that failed'
        if dropped_prose(json.loads((project.nbs/book).read_text('utf-8'))):
            yield f'{book}: {DROPPED}'


def write_sources(project, folder, books, work):
    "Everything Sphinx reads: converted notebooks, the files they refer to, the style sheet"
    shown = {project.pages[book]: symbols(nb) for book, nb in books.items()}
    shutil.copytree(folder, work, ignore=shutil.ignore_patterns('*.ipynb', '*.yml'))
    (work/'_static').mkdir()
    if (work/'styles.css').exists(): shutil.move(work/'styles.css', work/'_static')
    for book, nb in books.items():
        nb = sphinx_notebook(nb, book, project, shown)
        if book == 'index.ipynb': nb['cells'].append(markdown_cell('\n\n'.join(
            toctree(*section, project) for section in sections(project.site['sidebar']['contents'])), 'contents'))
        path = (work/project.pages[book]).with_suffix('.ipynb')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(nb), 'utf-8')


def site(jobs):
    "Build the site in _site/html; returns the exit code"
    project = read_project()
    if 'index.ipynb' not in project.pages: raise DocsError(f'{project.nbs.name}/index.ipynb, the home page, is missing')
    work, out = project.root/'_site'/'src', project.root/'_site'/'html'
    for folder in (work, out): shutil.rmtree(folder, ignore_errors=True)
    folder, books = processed(project)
    write_sources(project, folder, books, work)
    remarks = run_sphinx(project, work, out, jobs)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns('*.ipynb', '*.yml', '*.css'), dirs_exist_ok=True)
    faults = [*sidebar_faults(project), *notebook_faults(project, books), *missing_pages(project, out), *link_faults(out)]
    summarise(remarks)
    for fault in faults: print('error:', fault)
    print(f"{len(project.pages)} pages in {os.path.relpath(out)}, {count(remarks, 'warning')}, {count(faults, 'error')}")
    return 1 if faults else 0


def count(things, name):
    "3 errors"
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def summarise(remarks, limit=10):
    "Print Sphinx's warnings, the first of each kind"
    kinds = Counter()
    for line in remarks:
        kind = re.search(r'\[([\w.]+)\]$', line)
        kinds[kind := kind[1] if kind else ''] += 1
        if kinds[kind] <= limit: print('warning:', line)
    for kind, number in kinds.items():
        if number > limit: print(f'warning: ... and {number - limit} more [{kind}]')


def readme(check):
    "Write README.md, or compare it with what would be written; returns the exit code"
    project = read_project()
    text, path = readme_text(project), project.root/'README.md'
    if check:
        same = path.exists() and path.read_text('utf-8') == text
        print('README.md', 'is what nbs/index.ipynb says' if same else 'differs from nbs/index.ipynb: run `python .ci/docs.py readme`')
        return 0 if same else 1
    path.write_text(text, 'utf-8')
    return 0


def main():
    "Read the command line"
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    build = commands.add_parser('site', help='build the site and check every internal link')
    build.add_argument('--jobs', type=int, default=1, help='processes that Sphinx may use')
    commands.add_parser('readme', help='write README.md').add_argument('--check', action='store_true', help='only compare')
    args = parser.parse_args()
    try: return site(args.jobs) if args.command == 'site' else readme(args.check)
    except DocsError as e: print('error:', e); return 1


if __name__ == '__main__': sys.exit(main())
