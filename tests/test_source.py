"""The library is the export of the notebooks, the notebooks are clean, and the rooms keep to their doors."""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BIN = Path(sys.executable).parent
GENERATED = [p for p in sorted((ROOT / "scinterp").rglob("*.py")) if p.name != "__init__.py"]
BOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
ROOMS = {  # what each may import of the others
    "cells": {"core"},
    "text": {"core", "cells"},
    "methods": {"core", "cells", "text"},
    "evaluate": {"core"},
    "run": {"core", "cells", "text", "methods", "evaluate"},
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the sources, exported and cleaned again"
    to = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "scinterp", "data"):
        shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, to / name)
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([BIN / command], cwd=to, check=True, capture_output=True)
    return to


def test_library_is_the_export_of_the_notebooks(copy):
    again = {p.relative_to(copy): p.read_text() for p in (copy / "scinterp").rglob("*.py") if p.name != "__init__.py"}
    now = {p.relative_to(ROOT): p.read_text() for p in GENERATED}
    assert sorted(again) == sorted(now), "run nbdev_export"
    assert [str(p) for p in now if now[p] != again[p]] == [], "run nbdev_export: these differ from their notebooks"


def test_notebooks_are_clean(copy):
    dirty = [str(p.relative_to(ROOT)) for p in BOOKS if json.loads(p.read_text()) != json.loads((copy / p.relative_to(ROOT)).read_text())]
    assert dirty == [], "run nbdev_clean"


def test_ruff():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "nbs", "scinterp", "tests", "benchmarks", ".ci", "setup.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_is_fit_to_publish(book):
    text = book.read_text()
    notebook = json.loads(text)
    outputs = json.dumps([c.get("outputs", []) for c in notebook["cells"]])
    assert len(text) <= 300_000, "at most 300 kB"
    assert '"output_type": "error"' not in outputs
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", outputs), "a path of one machine in an output"
    assert not re.search(r"sk-[A-Za-z0-9]{16,}", text), "something like a key"
    assert not [c for c in notebook["cells"] if "export" in "".join(c["source"])[:12] and "import *" in "".join(c["source"])]


def imported_rooms(path):
    "Rooms of scinterp that a module imports"
    base = ("scinterp", *path.relative_to(ROOT / "scinterp").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = (*base[: len(base) + 1 - node.level], *(node.module or "").split(".")) if node.level else tuple((node.module or "").split("."))
            if parts[0] == "scinterp" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_keep_to_their_doors(room):
    for path in (ROOT / "scinterp" / room).glob("*.py"):
        assert set(imported_rooms(path)) <= ROOMS[room] | {room}, path.name


def test_the_door_check_sees_imports():
    assert "cells" in set(imported_rooms(ROOT / "scinterp" / "methods" / "protocol.py"))


def test_import_is_light():
    code = "import sys, time; t = time.perf_counter(); import scinterp as si; print(time.perf_counter() - t); print([m for m in ('torch', 'scanpy', 'transformers', 'anndata', 'matplotlib') if m in sys.modules])"
    seconds, heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert float(seconds) < 1 and heavy == "[]"


def test_every_public_name_resolves():
    code = "import scinterp as si, importlib; [getattr(importlib.import_module(m), n) for m in ('scinterp', *('scinterp.' + r for r in ('cells', 'text', 'methods', 'evaluate', 'run'))) for n in importlib.import_module(m).__all__]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_level_is_the_design():
    shown = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not (p / "run.json").exists()}
    made = {"scinterp.egg-info", "build", "dist", "_proc", "_site", "_docs"}
    assert shown - made == {"nbs", "scinterp", "data", "settings.ini", "setup.py", "_quarto.yml", "README.md", "tests", "benchmarks", "Makefile", "pyproject.toml",
                            "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md"}
