"""Every notebook does *Run All*: in a fresh kernel of this environment, started from another folder."""
import os
import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbdev.config import get_config

from scinterp.run.notebooks import environment_kernel

NBS = ROOT / "nbs"
SKIPPED = get_config(cfg_name="settings.ini", path=ROOT).tst_flags.split()
BOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(q[0] in "._" for q in p.relative_to(NBS).parts))


def front_matter(book):
    "The raw first cell, or an empty string"
    first = nbformat.read(book, as_version=4).cells[0]
    return first.source if first.cell_type == "raw" else ""


def runs(cell):
    "False for cells flagged slow, gpu or network, and for those marked `eval: false`"
    flags = re.findall(r"^#\|\s*(\S+?):?(?:\s+(\S+))?\s*$", cell.source, re.M) if cell.cell_type == "code" else []
    return not any(name in SKIPPED or (name == "eval" and value == "false") for name, value in flags)


@pytest.mark.parametrize("book", [b for b in BOOKS if "skip_exec: true" not in front_matter(b)], ids=lambda p: str(p.relative_to(NBS)))
def test_runs_in_a_fresh_kernel(book, tmp_path):
    notebook = nbformat.read(book, as_version=4)
    notebook.cells = [c for c in notebook.cells if runs(c)]
    with environment_kernel() as kernel:
        NotebookClient(notebook, timeout=600, kernel_name=kernel, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not os.listdir(tmp_path), "a notebook leaves nothing in the folder it was started from"


def test_flags_are_honoured():
    cell = nbformat.v4.new_code_cell
    assert not runs(cell("#| gpu\nx = 1")) and not runs(cell("#| eval: false\nx")) and runs(cell("#| export\nx = 1"))
