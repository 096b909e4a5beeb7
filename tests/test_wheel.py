"""The wheel works on its own: installed outside the clone, it runs the demo in an empty folder."""
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from test_cli import check_demo

from scinterp.run.results import read_results


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The project's wheel, built from a copy of its sources"
    copy = tmp_path_factory.mktemp("source") / "scinterp"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "_site", "_proc", "__pycache__", "*.egg-info", "scinterp-demo", ".*_cache"))
    to = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", to, copy], check=True, capture_output=True, timeout=600)
    return next(to.glob("*.whl"))


def test_wheel_carries_data_and_notebooks(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"scinterp/_files/gene_descriptions.tsv", "scinterp/_files/configs/scinterpreter.toml", "scinterp/_files/splits/demo/random-0.json",
            "scinterp/_nbs/papers/scinterpreter/fig2_performance.ipynb", "scinterp/run/cli.py"} <= names
    assert wheel.stat().st_size < 10_000_000


@pytest.mark.slow(240)
def test_wheel_runs_the_demo_in_an_empty_folder(wheel, tmp_path):
    "In its own environment, which borrows this one's libraries but not its scinterp"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel], check=True)
    (empty := tmp_path / "empty").mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    where = subprocess.run([python, "-c", "import scinterp; print(scinterp.__file__)"], cwd=empty, env=env, capture_output=True, text=True, check=True).stdout
    assert Path(where.strip()).is_relative_to(tmp_path / "env"), "the wheel's own scinterp is used"
    start = time.perf_counter()
    done = subprocess.run([python.with_name("scinterp"), "demo"], cwd=empty, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    print(f"demo: {time.perf_counter() - start:.0f} s")
    check_demo(empty / "scinterp-demo")
    table = read_results(empty / "scinterp-demo" / "results.csv")
    f1 = table[table.metric == "macro_f1"].set_index(["method", "control"]).value
    assert f1["scinterpreter", ""] > f1["majority", ""] + .3, "the reader has learnt something"
