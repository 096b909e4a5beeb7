"""`_quarto.yml` is sound and is what the site shows; the site and README.md are built, and faults in them are seen."""
import html
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat.v4 as nbf
import pytest
import yaml
from conftest import ROOT
from nbdev.config import get_config

NBS = ROOT / "nbs"
SETTINGS = get_config(cfg_name="settings.ini", path=ROOT)
QUARTO = yaml.safe_load((ROOT / "_quarto.yml").read_text())
BOOKS = sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb") if not any(q[0] in "._" for q in p.relative_to(NBS).parts))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="

# Keys of Quarto that we use; it ignores what it does not know, so that a slip of the pen would pass in silence.
KNOWN = {
    "": {"project", "lang", "website", "format", "execute"},
    "project": {"type", "output-dir"},
    "website": {"title", "description", "site-url", "repo-url", "repo-branch", "repo-actions", "search", "page-navigation", "navbar", "sidebar"},
    "website.navbar": {"background", "foreground", "left"},
    "website.sidebar": {"style", "contents"},
    "format": {"html"},
    "format.html": {"theme", "css", "toc", "code-fold"},
    "format.html.theme": {"light", "dark"},
    "execute": {"enabled"},
}


def docs(folder, *args):
    "Run `.ci/docs.py` in `folder`; returns the finished process"
    return subprocess.run([sys.executable, ROOT / ".ci" / "docs.py", *args], cwd=folder, capture_output=True, text=True, timeout=300)


# ---- _quarto.yml


def unknown_keys(tree, at=""):
    "Keys of a configuration, as dotted paths, that `KNOWN` does not have"
    for key, value in tree.items():
        if key not in KNOWN[at]:
            yield f"{at}.{key}".lstrip(".")
        elif isinstance(value, dict):
            yield from unknown_keys(value, f"{at}.{key}".lstrip("."))


def hrefs(contents):
    "Every target in a navigation bar or sidebar"
    for item in contents:
        item = {"href": item} if isinstance(item, str) else item
        assert set(item) <= {"href", "text", "section", "contents"}, item
        yield from [item["href"]] if "href" in item else []
        yield from hrefs(item.get("contents", []))


def test_nbdev_reads_the_file_at_the_top():
    assert (NBS / "_quarto.yml").is_symlink() and (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


def test_keys_are_known_to_quarto():
    assert list(unknown_keys(QUARTO)) == []
    assert list(unknown_keys({"websit": {}, "format": {"html": {"theem": "cosmo"}}})) == ["websit", "format.html.theem"]


def test_agrees_with_settings():
    site = QUARTO["website"]
    assert site["title"] == SETTINGS.title and site["description"] == SETTINGS.description
    assert site["site-url"] == SETTINGS.doc_host + SETTINGS.doc_baseurl
    assert site["repo-url"] == SETTINGS.git_url and site["repo-branch"] == SETTINGS.branch
    assert QUARTO["project"]["output-dir"] == SETTINGS.doc_path.name, "nbdev_docs moves this folder"


def test_navigation_leads_somewhere():
    missing = [h for h in hrefs(QUARTO["website"]["navbar"]["left"] + QUARTO["website"]["sidebar"]["contents"]) if h not in BOOKS]
    assert missing == []
    assert (NBS / QUARTO["format"]["html"]["css"]).is_file()


def test_every_notebook_is_in_the_sidebar_once():
    assert sorted(hrefs(QUARTO["website"]["sidebar"]["contents"])) == BOOKS


# ---- This project's site and README


def title(book):
    "The title of a notebook, as nbdev reads it: from the front matter, else the first heading"
    for cell in json.loads((NBS / book).read_text())["cells"]:
        text = "".join(cell["source"])
        if found := re.search(r"^title: *(.+)$" if cell["cell_type"] == "raw" else r"^# +(.+)$", text, re.M):
            if cell["cell_type"] != "code":
                return found[1].strip()


def words(markup):
    "The text of HTML or Markdown, without marks and with straight quotes"
    return re.sub(r"[`*]", "", html.unescape(re.sub(r"<[^>]+>", "", markup))).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}).strip()


def page_of(book):
    "The page nbdev gives a notebook: `cells/50_datasets.ipynb` is shown as `cells/datasets.html`"
    folder, _, name = book.rpartition("/")
    return f"{folder}/{re.sub(r'^[0-9]+[a-z0-9]*_', '', name)}".lstrip("/").replace(".ipynb", ".html")


def search_index(site):
    "Sphinx's search index: its pages, and a function from the stem of a word to the pages that hold it"
    text = (site / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").rstrip(";\n").removesuffix(")"))

    def found(stem):
        hits = [index[part].get(stem, []) for part in ("terms", "titleterms")]  # one page is a number, several are a list
        return {index["docnames"][i] for hit in hits for i in (hit if isinstance(hit, list) else [hit])}

    return index["docnames"], found


@pytest.mark.slow(40)
def test_site(tmp_path):
    "One test, so that the site is built once however many workers there are; in a copy, so that none builds over another"
    shutil.copytree(NBS, tmp_path / "nbs", symlinks=True, ignore=shutil.ignore_patterns(".*"))
    for path in ROOT.iterdir():  # the rest, since pages refer to it
        if path.is_file():
            shutil.copy(path, tmp_path)
        elif path.name not in ("nbs", "_proc", "_site"):
            (tmp_path / path.name).symlink_to(path)
    done = docs(tmp_path, "site")
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "_site" / "html"
    for book in BOOKS:
        page = (site / page_of(book)).read_text()
        heading = re.search(r"<h1>(.*?)<a class=\"headerlink\"", page, re.S)
        assert heading and words(heading[1]) == words(title(book)), book
        assert not re.search(r"^#\|", words(page), re.M), f"{book}: a directive is shown"
    names, found = search_index(site)
    assert sorted(names) == sorted(page_of(book).removesuffix(".html") for book in BOOKS)
    assert "text/gene_tables" in found("permut"), "the stem of `permuted`"


def test_readme_is_what_the_home_page_says():
    done = docs(ROOT, "readme", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


# ---- A small project, made here, in which faults can be sown


@pytest.fixture
def small(tmp_path):
    "A project of a home page and two notebooks of the same name, without fault"
    shutil.copy(ROOT / "settings.ini", tmp_path)
    quarto = {**QUARTO, "website": {**QUARTO["website"], "sidebar": {"contents": [
        {"href": "index.ipynb", "text": "Home"}, {"section": "Two", "contents": ["a/10_same.ipynb", "b/10_same.ipynb"]}]}}}
    (tmp_path / "_quarto.yml").write_text(yaml.safe_dump(quarto))
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    (tmp_path / "nbs" / "_quarto.yml").symlink_to("../_quarto.yml")
    (tmp_path / "nbs" / "styles.css").write_text("")
    (tmp_path / "nbs" / "images" / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    save(tmp_path, "index.ipynb", [
        nbf.new_markdown_cell("# Small\n\n> A promise"),
        nbf.new_markdown_cell('See [a](a/10_same.ipynb#a-part) and the [settings](../settings.ini).\n\n![Dots](images/dot.svg){width=50% fig-alt="One\'s dot"}'),
        nbf.new_code_cell("#| hide\nconcealed = 1"),
        nbf.new_code_cell("#| echo: false\nunseen()", outputs=[shown({"text/html": "<table border='1'>\n\n<tr><td>cell</td></tr></table>", "text/plain": "?"})]),
    ])
    for folder in "ab":
        save(tmp_path, f"{folder}/10_same.ipynb", [
            nbf.new_raw_cell("---\nskip_exec: true\n---"),
            nbf.new_markdown_cell(f"# Same, {folder}"),
            nbf.new_markdown_cell("## A part\n\n```{.python}\nx = 1\n```\n\n$x^2$"),
            nbf.new_code_cell("level = 3", metadata={"tags": ["parameters"]}),
            nbf.new_code_cell('#| fig-cap: "A: caption"\n#| fig-alt: A pixel\nplot()', outputs=[shown({"image/png": PIXEL, "text/plain": "?"})]),
            nbf.new_code_cell("#| output: asis\nprint('**bold**')", outputs=[nbf.new_output("stream", name="stdout", text="**bold** [b](../b/10_same.ipynb)")]),
            nbf.new_code_cell("wait()", outputs=[nbf.new_output("stream", name="stderr", text="\r 10%|#  | 1/10\r100%|###| 10/10"),
                                                 shown({"application/vnd.jupyter.widget-view+json": {"model_id": "w"}, "text/plain": "a bar"})]),
        ])
    return tmp_path


def shown(data):
    "A stored output"
    return nbf.new_output("display_data", data=data)


def save(project, book, cells):
    "Write a notebook of the small project"
    path = project / "nbs" / book
    path.parent.mkdir(exist_ok=True)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps(nbf.new_notebook(cells=cells, metadata=metadata)))


@pytest.mark.slow(8)
def test_small_site(small, monkeypatch):
    done = docs(small, "site")
    assert done.returncode == 0 and "3 pages" in done.stdout and "0 warnings, 0 errors" in done.stdout, done.stdout + done.stderr
    site = small / "_site" / "html"
    home, page = ((site / name).read_text() for name in ("index.html", "a/same.html"))
    assert 'href="a/same.html#a-part"' in home and f'href="{SETTINGS.git_url}/blob/{SETTINGS.branch}/settings.ini"' in home
    assert 'alt="One\'s dot"' in home and "<td>cell</td>" in home and (site / "images" / "dot.svg").is_file()
    assert "concealed" not in home and "unseen" not in home
    assert "Same, a" in page and "Same, b" in (site / "b" / "same.html").read_text()
    assert 'id="a-part"' in page and "<math" in page and "tag_parameters" in page and "{.python}" not in page
    assert 'alt="A pixel"' in page and re.search(r"<figcaption>.*A: caption", page, re.S)
    assert '<strong>bold</strong> <a' in page and 'href="../b/same.html"' in page
    assert "wait" in page and "10/10" not in page and "a bar" not in page

    # A page that Sphinx did not write is missed, by its notebook and by the links to it.
    monkeypatch.syspath_prepend(ROOT / ".ci")
    import docs as command
    project = SimpleNamespace(pages={"a/10_same.ipynb": "a/same.html"})
    assert list(command.link_faults(site)) == command.missing_pages(project, site) == []
    (site / "a" / "same.html").unlink()
    assert command.missing_pages(project, site) == ["a/10_same.ipynb: has no page a/same.html"]
    assert "index.html: dead link to a/same.html#a-part" in list(command.link_faults(site))


@pytest.mark.slow(8)
def test_faults_are_found(small):
    save(small, "a/10_same.ipynb", [
        nbf.new_markdown_cell("# Same, a\n\nLost prose."),
        nbf.new_markdown_cell("[file](none.html) [page](../b/20_none.ipynb) [anchor](../b/10_same.ipynb#none) ![picture](https://example.org/x.png)"),
        nbf.new_code_cell("1/0", outputs=[nbf.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]),
    ])
    save(small, "c/10_new.ipynb", [nbf.new_markdown_cell("# New")])
    text = (small / "_quarto.yml").read_text()
    (small / "_quarto.yml").write_text(text.replace("b/10_same.ipynb", "b/30_gone.ipynb"))
    done = docs(small, "site")
    assert done.returncode == 1
    for fault in ("a/same.html: dead link to none.html", "a/same.html: dead link to ../b/20_none.ipynb",
                  "a/same.html: no such anchor, ../b/same.html#none", "a/same.html: fetches https://example.org/x.png from the network",
                  "a/10_same.ipynb: the cell with the title holds prose too", "a/10_same.ipynb: holds the output of a cell that failed",
                  "the sidebar lists b/30_gone.ipynb", "b/10_same.ipynb: no section", "c/10_new.ipynb: no section"):
        assert f"error: {fault}" in done.stdout or f"error: _quarto.yml: {fault}" in done.stdout, f"{fault}\n{done.stdout}{done.stderr}"


@pytest.mark.slow(8)
def test_readme_check_notices_a_change(small):
    readme = small / "README.md"
    assert docs(small, "readme", "--check").returncode == 1, "there is none yet"
    assert docs(small, "readme").returncode == docs(small, "readme", "--check").returncode == 0
    text = readme.read_text()
    assert text.startswith("# Small\n\n> A promise\n\n<!-- Written from nbs/index.ipynb")
    assert f"[a]({QUARTO['website']['site-url']}/a/same.html#a-part)" in text and "[settings](settings.ini)" in text
    assert "![One's dot](nbs/images/dot.svg)\n\n*Dots*" in text and "<table border='1'>\n<tr><td>cell</td></tr></table>" in text
    assert "concealed" not in text and "unseen" not in text
    readme.write_text(text + "By hand.\n")
    done = docs(small, "readme", "--check")
    assert done.returncode == 1 and "differs from nbs/index.ipynb" in done.stdout
    readme.write_text(text)
    book = small / "nbs" / "index.ipynb"
    sound = book.read_text()
    for before, after, fault in (("dot.svg", "gone.svg", "images/gone.svg does not exist"), ("> A promise", "> A promise\\n\\nLost.", "holds prose too")):
        book.write_text(sound.replace(before, after))
        assert fault in docs(small, "readme").stdout and readme.read_text() == text
