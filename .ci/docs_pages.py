"""The project as the documentation sees it, and its notebooks as Markdown: for Sphinx, and for README.md."""
import json
import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from execnb.nbio import nb2str, read_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _nbpath2html, nbglob
from nbdev.processors import FilterDefaults


class DocsError(Exception):
    "The documentation cannot be made; the message says why"


# ---- The project -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Project:
    "Where things are: folders, the site's address, and the page (`core.html`) of each notebook (`00_core.ipynb`)"
    root: Path
    nbs: Path
    quarto: dict
    pages: dict
    copyright: str

    @property
    def site(self): return self.quarto['website']
    @property
    def url(self): return self.site['site-url'].rstrip('/') + '/'
    @property
    def blob(self): return f"{self.site['repo-url'].rstrip('/')}/blob/{self.site['repo-branch']}/"


def read_project():
    "The nbdev project around the working directory"
    config = get_config()
    nbs = config.nbs_path
    books = sorted(path.relative_to(nbs) for path in nbglob(nbs, as_path=True))
    return Project(config.config_path, nbs, yaml.safe_load((config.config_path/'_quarto.yml').read_text('utf-8')),
                   {book.as_posix(): _nbpath2html(book).as_posix() for book in books}, config.copyright)


def sections(contents):
    "A sidebar as (section, [(text, href)]) pairs in reading order; entries outside any section come under None"
    loose = []
    for item in contents:
        item = {'href': item} if isinstance(item, str) else item
        if 'section' not in item: loose.append((item.get('text'), item['href'])); continue
        if loose: yield None, loose; loose = []
        # A section within a section has no counterpart in furo's sidebar: it follows under its own name.
        for name, entries in sections(item.get('contents', [])): yield name or item['section'], entries
    if loose: yield None, loose


def sidebar_faults(project):
    "Notebooks the sidebar lacks, entries that lead nowhere, and notebooks that would overwrite each other's page"
    listed = [href for _, entries in sections(project.site['sidebar']['contents']) for _, href in entries]
    for href in listed:
        if href not in project.pages: yield f'_quarto.yml: the sidebar lists {href}, which is not a notebook of this project'
    for book in project.pages:
        if book not in listed: yield f'{book}: no section of the sidebar in _quarto.yml lists it'
    for page, count in Counter(project.pages.values()).items():
        if count > 1: yield f'{page}: {count} notebooks have this page name; rename all but one'


# ---- Links -----------------------------------------------------------------------------------------------------------

CODE = re.compile(r'(^```.*?^```|`[^`\n]+`)', re.S | re.M)
LINK = re.compile(r'(\]\(|\b(?:href|src)=["\'])([^)\s"\']+)')


def outside_code(text, change):
    "`text` with `change` applied to all but code fences and inline code"
    parts = CODE.split(text)
    return ''.join(part if i % 2 else change(part) for i, part in enumerate(parts))


def relink(text, change):
    "Markdown `text` with the target of every link and image replaced by `change(target)`"
    return outside_code(text, lambda part: LINK.sub(lambda m: m[1] + change(m[2]), part))


def destination(target, book, project):
    "What `target` in notebook `book` points at: ('page', 'core.html#load'), ('file', path from the root) or ('other', target)"
    if target.startswith(project.url): return 'page', target.removeprefix(project.url) or 'index.html'
    if target.startswith(('#', '/')) or urlsplit(target).scheme: return 'other', target
    path, hash_, anchor = target.partition('#')
    path = posixpath.normpath(posixpath.join(posixpath.dirname(book), unquote(path)))
    if path in project.pages: return 'page', project.pages[path] + hash_ + anchor
    return 'file', posixpath.normpath(posixpath.join(project.nbs.relative_to(project.root).as_posix(), path))


def site_link(target, book, project, shown):
    "The address of `target`, as written in notebook `book`, on its page of the site"
    kind, place = destination(target, book, project)
    if kind == 'page':
        page, _, anchor = place.partition('#')
        # nbdev links to whatever the library defines; what no page shows (private helpers) has no anchor to go to.
        if anchor and target in doclinks() and anchor not in shown.get(page, ()): place = page
        return posixpath.relpath(place, posixpath.dirname(project.pages[book]) or '.')
    outside = kind == 'file' and not place.startswith(project.nbs.name + '/')
    return project.blob + place if outside and (project.root/place).exists() else target


def readme_link(target, book, project):
    "The address of `target`, as written in notebook `book`, for a README at the root"
    kind, place = destination(target, book, project)
    if kind == 'page': return project.url + place
    if kind == 'file' and not (project.root/place).exists(): raise DocsError(f'{book}: {target} does not exist')
    return place


@lru_cache
def doclinks():
    "Every address nbdev may link a name in backticks to"
    return {entry[0] for entry in NbdevLookup().syms.values() if isinstance(entry, tuple)}


# ---- What nbdev and Quarto write, as plain Markdown ------------------------------------------------------------------

OPTION = re.compile(r'^#\|\s*([\w-]+)\s*:?\s*(.*)$')
FENCE = re.compile(r'^```\s*\{\.?(\w+)[^}\n]*\}', re.M)
FIGURE = re.compile(r'!\[([^\]]*)\]\(([^)\s]+)\)\{[^}\n]*fig-alt=(["\'])(.*?)\3[^}\n]*\}')
ATTRIBUTES = re.compile(r'(?<=\))\{[^}\n]*\}| *\{[.#][^}\n]*\}$', re.M)
CALLOUT = re.compile(r'^:::\s*\{\.callout-(\w+)[^}\n]*\}', re.M)
HEADING = re.compile(r'^#+ ', re.M)
BAR = re.compile(r'\d+%\|')
WIDGETS = {'application/vnd.jupyter.widget-view+json', 'application/javascript'}


def plain(text):
    "Markdown without Quarto's attributes: `{.python}` fences, `{width=60%}`, and `{fig-alt=...}` as the alternative text"
    text = FENCE.sub(r'```\1', text)
    return outside_code(text, lambda part: ATTRIBUTES.sub('', FIGURE.sub(r'![\4](\2)\n\n*\1*', part)))


def options(source):
    "The `#| key: value` lines that open a code cell as a dict, and the source that follows"
    found, lines = {}, source.splitlines()
    while lines and (not lines[0].strip() or OPTION.match(lines[0])):
        if match := OPTION.match(lines.pop(0)): found[match[1]] = option_value(match[2])
    return found, '\n'.join(lines)


def option_value(text):
    "The YAML value of an option; text that is not YAML is taken as it is"
    try: return yaml.safe_load(text)
    except yaml.YAMLError: return text


def joined(text):
    "Text that a notebook may hold as one string or as a list of lines"
    return text if isinstance(text, str) else ''.join(text or ())


def markdown_of(output):
    "The Markdown of an output of a cell with `output: asis`"
    return joined(output.get('data', {}).get('text/markdown') or output.get('text'))


def kept(outputs):
    "Outputs worth a page: no widgets, and no progress bars, which are all over once the notebook is read"
    result = []
    for output in outputs:
        if WIDGETS & set(output.get('data', {})): continue
        if output['output_type'] == 'stream':
            lines = re.split(r'(?<=[\r\n])', joined(output['text']))
            output = {**output, 'text': ''.join(line for line in lines if not BAR.search(line)).replace('\r', '')}
            if not output['text'].strip(): continue
        result.append(output)
    return result


def front_matter(nb):
    "Title, description and the like, which nbdev gathers in a raw cell"
    for cell in nb['cells']:
        source = joined(cell['source']).strip()
        if cell['cell_type'] == 'raw' and source.startswith('---'): return yaml.safe_load(source.strip('-')) or {}
    return {}


DROPPED = 'the cell with the title holds prose too, which nbdev drops; move it to a cell of its own'


def dropped_prose(nb):
    "What stands in the title cell of a notebook besides `# title`, one line of `> description` and `- key: value`"
    if 'title' in front_matter(nb): return ''
    titled = (joined(cell['source']) for cell in nb['cells'] if cell['cell_type'] == 'markdown')
    rest = next((text for text in titled if re.search(r'^# ', text, re.M)), '')
    for line, times in ((r'^# .*', 1), (r'^> .*', 1), (r'^- .*:.*', 0)): rest = re.sub(line, '', rest, count=times, flags=re.M)
    return rest.strip()


def body(nb):
    "The cells below the front matter as (cell, source, options), without those that say they are not for readers"
    for cell in nb['cells']:
        source = joined(cell['source'])
        if cell['cell_type'] == 'raw' or 'THIS FILE WAS AUTOGENERATED' in source: continue
        found, source = options(source) if cell['cell_type'] == 'code' else ({}, plain(source))
        if found.get('include') is False: continue
        if cell['cell_type'] == 'code': cell['outputs'] = [] if found.get('output') is False else kept(cell['outputs'])
        yield cell, source, found


# ---- Documentation of symbols ----------------------------------------------------------------------------------------

SOURCE = re.compile(r'\[source\]\(([^)\s]+)\)\s*')
LINKED_NAME = re.compile(r'\[(`[^`\n]+`)\]\([^)\s]+\)')
SYMBOL = re.compile(r'^#+ (\S+)$', re.M)


def documents_symbol(cell):
    "Whether nbdev made this cell to document a symbol"
    return cell[2].get('output') == 'asis' and cell[1].startswith('show_doc(')


def symbols(nb):
    "Anchors of the symbols that a processed notebook documents"
    texts = (markdown_of(output) for cell in body(nb) if documents_symbol(cell) for output in cell[0]['outputs'])
    return {name.lower() for text in texts for name in SYMBOL.findall(text)}


def symbol_text(text, level):
    "What `show_doc` wrote, as Markdown: the name as a heading of `level`, and the link to its source beside it"
    text = plain(text.removeprefix('---\n\n'))
    link = SOURCE.search(text)
    text = SOURCE.sub('', text, count=1)
    # Backticks, because `__call__` would else be read as bold.
    text = SYMBOL.sub(lambda m: f"{'#'*level} `{m[1]}`" + (f'\n\n<a class="symbol-source" href="{link[1]}">source</a>' if link else ''), text)
    # nbdev links names within code too, where links cannot be.
    return re.sub(r'^```.*?^```', lambda m: LINKED_NAME.sub(lambda name: name[1].strip('`'), m[0]), text, flags=re.S | re.M)


def in_source_order(cells):
    "`cells` with each run of `show_doc` cells in the order of the source: nbdev reverses those that one cell defines"
    result, run = [], []
    for cell in cells:
        if documents_symbol(cell): run.append(cell); continue
        result += sorted(run, key=source_line) + [cell]
        run = []
    return result + sorted(run, key=source_line)


def source_line(cell):
    "The line of the library where the symbol of a `show_doc` cell stands"
    line = re.search(r'#L(\d+)\)', ''.join(map(markdown_of, cell[0]['outputs'])))
    return int(line[1]) if line else 0


# ---- A notebook for Sphinx -------------------------------------------------------------------------------------------

def sphinx_notebook(nb, book, project, shown):
    "A processed notebook as myst-nb reads it"
    meta, cells, level = front_matter(nb), [], 2 # the level of symbols: below the title, or below the last section
    relative = lambda text: relink(text, lambda target: site_link(target, book, project, shown))
    title = f"# {meta.get('title', Path(book).stem)}\n\n" + (f"> {meta['description']}" if meta.get('description') else '')
    cells.append(markdown_cell(relative(title)))
    for cell, source, found in in_source_order(body(nb)):
        if cell['cell_type'] == 'markdown':
            source = CALLOUT.sub(r':::{\1}', outside_code(source, lambda part: re.sub(r'^# ', '## ', part, flags=re.M)))
            cells.append(markdown_cell(relative(source)))
            if HEADING.search(CODE.sub('', source)): level = 3
        elif documents_symbol((cell, source, found)):
            cells += [markdown_cell(relative(symbol_text(markdown_of(output), level))) for output in cell['outputs']]
        elif source.strip() or cell['outputs']:
            cells += code_cells(cell, source, found, meta.get('title', ''), relative)
    for i, cell in enumerate(cells): cell['id'] = f'cell-{i}'
    return {**nb, 'cells': cells, 'metadata': {k: v for k, v in nb['metadata'].items() if k != 'widgets'}}


def markdown_cell(text, name=None):
    "A Markdown cell"
    return dict(cell_type='markdown', metadata={}, source=text, id=name)


def code_cells(cell, source, found, title, relative):
    "A code cell with what its options ask for, and its caption where there is no figure to carry it"
    tags = [tag for tag in cell['metadata'].get('tags', []) if tag.endswith('parameters')]
    if found.get('echo') is False: tags.append('remove-input')
    elif found.get('code-fold') is True: tags.append('hide-input')
    if found.get('warning') is False: tags.append('remove-stderr')
    for output in cell['outputs']:
        if found.get('output') == 'asis':
            text = markdown_of(output)
            output.clear()
            output.update(output_type='display_data', metadata={}, data={'text/markdown': text})
        if markdown := joined(output.get('data', {}).get('text/markdown')): output['data']['text/markdown'] = relative(plain(markdown))
    caption = relative(str(found.get('fig-cap') or found.get('tbl-cap') or ''))
    look = {'image': {'alt': str(found.get('fig-alt') or caption or f'Figure of {title}')}}
    if found.get('code-summary'): look['code_prompt_show'] = look['code_prompt_hide'] = str(found['code-summary'])
    pictured = any(mime.startswith('image/') for output in cell['outputs'] for mime in output.get('data', {}))
    if pictured and caption: look['figure'] = {'caption': caption}
    code = dict(cell_type='code', metadata={'tags': tags, 'mystnb': look}, source=source, outputs=cell['outputs'], execution_count=None)
    return [code] if pictured or not caption or not cell['outputs'] else [markdown_cell(f'{{.caption}}\n{caption}'), code]


def toctree(caption, entries, project):
    "One section of the sidebar as MyST"
    lines = [f'{text} <{page}>' if text else page for text, page in
             ((text, 'self' if href == 'index.ipynb' else project.pages[href].removesuffix('.html'))
              for text, href in entries if href in project.pages)]
    return '\n'.join(['```{toctree}', ':hidden:', *([f':caption: {caption}'] if caption else []), '', *lines, '```'])


# ---- README.md -------------------------------------------------------------------------------------------------------

def readme_text(project, book='index.ipynb'):
    "The home page as GitHub Markdown"
    nb = read_nb(project.nbs/book)
    if dropped_prose(nb): raise DocsError(f'{book}: {DROPPED}')
    FilterDefaults()(nb)
    nb = json.loads(nb2str(nb))
    meta = front_matter(nb)
    parts = [f"# {meta['title']}", f"> {meta.get('description', '')}",
             f'<!-- Written from {project.nbs.name}/{book} by `python .ci/docs.py readme`: change that, not this. -->']
    for cell, source, found in body(nb):
        parts += [source] if cell['cell_type'] == 'markdown' else readme_code(cell, source, found)
    if ':::' in ''.join(parts): raise DocsError(f'{book}: GitHub cannot show Quarto blocks (:::)')
    text = '\n\n'.join(part.strip() for part in parts if part.strip(' >'))
    return relink(text, lambda target: readme_link(target, book, project)) + '\n'


def readme_code(cell, source, found):
    "A code cell and its outputs as Markdown, as its options say"
    code = f'```python\n{source.strip()}\n```' if source.strip() and found.get('echo') is not False else ''
    if code and found.get('code-fold') is True:
        code = f"<details>\n<summary>{found.get('code-summary', 'Code')}</summary>\n\n{code}\n\n</details>"
    caption = found.get('fig-cap') or found.get('tbl-cap')
    write = markdown_of if found.get('output') == 'asis' else readme_output
    return [code, *map(write, cell['outputs']), f'*{caption}*' if caption else '']


def readme_output(output):
    "An output as Markdown: Markdown, an HTML table or text"
    data = output.get('data', {})
    if 'text/markdown' in data: return plain(joined(data['text/markdown']))
    if 'text/html' in data:
        table = re.sub(r'<style.*?</style>', '', joined(data['text/html']), flags=re.S)
        return '\n'.join(line for line in table.splitlines() if line.strip()) # a blank line would end the HTML
    if any(mime.startswith('image/') for mime in data):
        raise DocsError('index.ipynb: a README cannot hold the picture of an output; save it in images/ and refer to it')
    return f"```text\n{joined(data.get('text/plain') or output.get('text')).strip()}\n```"
