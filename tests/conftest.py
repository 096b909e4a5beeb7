"""One cache folder for the whole run, empty at its start, so that no result of an earlier run hides a fault."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = os.environ.get("SCINTERP_DATA", "")


def kang():
    "Cells of the first and of the other donors of a real set"
    from scinterp.cells import datasets
    cells = datasets.load("human_pbmc_kang_8donors_1287genes")
    first = cells.obs["donor"].isin(sorted(cells.obs["donor"].unique())[:4]).to_numpy()
    return cells[first].copy(), cells[~first].copy()


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["SCINTERP_CACHE"] = tempfile.mkdtemp(prefix="scinterp-cache-")
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp(prefix="hypothesis-")  # not in the folder a notebook runs in


def pytest_make_parametrize_id(val):
    "No bytes in the name of a test: packed ones hold the time, so that two workers would collect different tests"
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    "The longest first, so that two workers end together"
    items.sort(key=lambda item: -item.get_closest_marker("slow").args[0] if item.get_closest_marker("slow") else 0)


@pytest.fixture
def scinterp():
    "Run the `scinterp` command as a user does; returns the finished process"
    command = [str(Path(sys.executable).with_name("scinterp"))]

    def call(*args, timeout=600, **options):
        env = os.environ | options.pop("env", {})
        return subprocess.run(command + [str(a) for a in args], capture_output=True, text=True, env=env, timeout=timeout, **options)

    return call


@pytest.fixture
def nothing_at_hand(tmp_path, monkeypatch):
    "No table that an earlier test, or the person running this, has fetched"
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCINTERP_DATA", raising=False)
    monkeypatch.delenv("SCINTERP_OFFLINE", raising=False)
