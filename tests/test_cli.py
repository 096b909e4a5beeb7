"""The command as a user meets it: bad input is one sentence and exit code 2, and nothing is written or lost."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from scinterp.core import file_sha256
from scinterp.run.results import read_results
from scinterp.text.encoders import minilm_path


def refused(done, *words):
    "One sentence on stderr that holds these words, exit code 2"
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("scinterp: "), done.stderr
    assert all(w in lines[0] for w in words), lines[0]


def test_help_teaches(scinterp):
    done = scinterp("demo", "--help")
    assert done.returncode == 0 and "--out" in done.stdout and "no network" in " ".join(done.stdout.split())
    assert scinterp("--version").stdout.startswith("scinterp ")
    assert scinterp("nonsense").returncode == 2


def test_folder_that_holds_something_is_left_alone(scinterp, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(scinterp("demo", "--out", tmp_path), "is not empty")
    refused(scinterp("demo", "--out", tmp_path, "--overwrite"), "is not empty")
    refused(scinterp("demo", "--out", tmp_path / "thesis.txt"), "is a file")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_folder_that_cannot_be_written(scinterp, tmp_path):
    (tmp_path / "file").touch()
    refused(scinterp("demo", "--out", tmp_path / "file" / "out"), "cannot be written to")
    if os.path.isdir("/proc"):
        refused(scinterp("demo", "--out", "/proc/out"), "cannot be written to")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        refused(scinterp("demo", "--out", tmp_path / "locked" / "out"), "cannot be written to")
    assert {p.name for p in tmp_path.iterdir()} <= {"file", "locked"}


@pytest.mark.parametrize("fault", ["missing", "altered", "truncated"])
def test_bad_model_file(scinterp, tmp_path, fault):
    model = tmp_path / "model"
    shutil.copytree(minilm_path(), model)
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if fault == "altered":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if fault == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    done = scinterp("demo", "--out", tmp_path / "out", env={"SCINTERP_MINILM": str(model)})
    refused(done, "missing" if fault == "missing" else "not the published ones", "pip install")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"], "nothing half-written"


def test_unknown_profile_makes_nothing(scinterp, tmp_path):
    refused(scinterp("demo", "--out", tmp_path / "out", "--profile", "moon"), "no profile 'moon'", "smoke, cpu")
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_is_not_replaced(scinterp, tmp_path):
    refused(scinterp("demo", "--out", ".", cwd=tmp_path), "cannot be replaced")


NO_NETWORK = """
import os, socket
real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        open(os.environ["ATTEMPTS"], "a").write(repr(address))
        raise OSError("no network")
    return real(self, address)
socket.socket.connect = connect
def lookup(host, *args, real=socket.getaddrinfo, **options):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        open(os.environ["ATTEMPTS"], "a").write(repr(host))
        raise socket.gaierror("no network")
    return real(host, *args, **options)
socket.getaddrinfo = lookup
"""


@pytest.mark.slow(60)
def test_demo_needs_no_network_nor_the_users_kernel(scinterp, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    kernel = tmp_path / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["/no/such/python", "{connection_file}"], "display_name": "stale", "language": "python"}))
    env = {"PYTHONPATH": str(tmp_path / "site"), "ATTEMPTS": str(tmp_path / "attempts"), "HOME": str(tmp_path / "home"), "JUPYTER_PREFER_ENV_PATH": "0"}
    out = tmp_path / "out"
    done = scinterp("demo", "--profile", "smoke", "--out", out, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "attempts").exists(), "something was asked of the network"
    check_demo(out)
    refused(scinterp("demo", "--profile", "smoke", "--out", out), "already holds a finished run")


def check_demo(out: Path):
    "Everything the demo promises is in its folder, and the manifest's hashes are true"
    expected = {"index.html", "results.csv", "predictions.csv", "maps.csv", "run.json", "arms", "figures", "notebooks"}
    assert {p.name for p in out.iterdir()} == expected
    figures = ["fig2_performance", "fig3_confusion", "fig4_umap"]
    assert sorted(p.name for p in (out / "figures").iterdir()) == sorted(f + s for f in figures for s in (".png", ".svg"))
    assert sorted(p.name for p in (out / "notebooks").iterdir()) == [f + ".ipynb" for f in figures]
    table = read_results(out / "results.csv")
    rows = set(zip(table.method, table.control))
    assert {m for m, _ in rows} == {"majority", "lr-hvg", "knn-pca", "genept-w", "scelmo-wa", "scinterpreter"}
    assert {c for m, c in rows if m == "scinterpreter"} == {"", "random-table", "permuted-text", "no-llm", "random-llm"}
    f1 = table[table.metric == "macro_f1"].set_index(["method", "control"]).value
    assert f1["lr-hvg", ""] > f1["majority", ""] + .3, "the baseline has learnt something"
    manifest = json.loads((out / "run.json").read_text())
    assert all(file_sha256(out / name) == sha for name, sha in manifest["files"].items())
    page = (out / "index.html").read_text()
    assert all(f'src="figures/{f}.svg"' in page for f in figures) and "http" not in page.replace("http-equiv", "")
    assert str(out) not in page


@pytest.mark.slow(50)
def test_killed_run_goes_on_where_it_was(tmp_path, scinterp):
    out = tmp_path / "out"
    command = [str(Path(sys.executable).with_name("scinterp")), "demo", "--profile", "smoke", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(done := list(tmp_path.glob(".out.partial/arms/*/arm.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(done) >= 3 and not out.exists(), "nothing stands under the final name yet"
    when = {p.parent.name: p.stat().st_mtime_ns for p in done}
    assert scinterp(*command[1:]).returncode == 0
    assert {n: (out / "arms" / n / "arm.json").stat().st_mtime_ns for n in when} == when, "what was done is not done again"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    check_demo(out)


def test_readme_names_the_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme[:2500] and "make test" in readme[:2500]
    targets = (ROOT / "Makefile").read_text()
    assert all(f"\n{t}:" in targets for t in ("demo", "test", "docs", "figures", "bench"))


def test_what_can_be_fetched_is_listed(scinterp):
    done = scinterp("fetch")
    assert done.returncode == 0 and "mouse-13k" in done.stdout and "genes: the names" in done.stdout


@pytest.mark.parametrize("command,words", [(["fetch", "humen-10k"], "human-10k"), (["fetch", "genes"], "SCINTERP_OFFLINE forbids downloads"), (["fetch", "heart"], "only a person can get"),
                                           (["cost", "demo", "--model", "gpt-9"], "gpt-9"), (["cost", "nowhere"], "no dataset 'nowhere'"), (["cost", "demo", "--source", "moon"], "moon")])
def test_what_cannot_be_fetched_or_priced_is_one_sentence(scinterp, tmp_path, command, words):
    done = scinterp(*command, env=os.environ | {"SCINTERP_OFFLINE": "1", "SCINTERP_CACHE": str(tmp_path / "cache")}, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_cost_needs_no_key(scinterp):
    env = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    done = scinterp("cost", "demo", env=env)
    assert done.returncode == 0 and "765" in done.stdout
