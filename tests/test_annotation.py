"""`fit`, `annotate` and `embed` on files: what they write, and what they refuse in one sentence, having written nothing."""
import sys
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
from conftest import DATA, kang

from scinterp import methods
from scinterp.cells import datasets

FIT = ["--method", "lr-hvg", "--set", "penalties=[0.1]", "--calibration", ".2", "--error", ".1", "--state", "log1p-cp10k"]
STATE = ["--state", "log1p-cp10k"]


@pytest.fixture
def run(monkeypatch, capsys):
    "The command in this process, as its entry point runs it: exit code, stdout, stderr"
    from scinterp.run.cli import main

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["scinterp", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
            raise SystemExit(0)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=stopped.value.code or 0, stdout=said.out, stderr=said.err)

    return call


def refused(done, *words):
    "One sentence on stderr that holds these words, exit code 2"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("scinterp: "), done.stderr
    assert all(w in lines[0] for w in words), lines[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Labelled training cells, a query without labels, and a model of the former"
    folder = tmp_path_factory.mktemp("files")
    cells, parts = datasets.load("demo"), datasets.split("demo")
    cells.obs["species"] = "human"
    del cells.uns["scinterp_source"]
    train, query = cells[np.r_[parts.train, parts.val]].copy(), cells[parts.test].copy()
    del query.obs["cell_type"], query.obs["bulk_labels"]
    train.write_h5ad(folder / "train.h5ad")
    query.write_h5ad(folder / "query.h5ad")
    from scinterp.run.annotation import fit_file
    fit_file(folder / "train.h5ad", folder / "model", method="lr-hvg", settings={"penalties": [.1]}, calibration=.2, error=.1, state="log1p-cp10k", say=lambda text: None)
    return folder


@pytest.mark.slow(30)
def test_fit_annotate_embed_as_a_user_runs_them(scinterp, files, tmp_path):
    done = scinterp("fit", files / "train.h5ad", *FIT, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "log1p-cp10k" in done.stdout and "macro-F1" in done.stdout and "scinterp annotate" in done.stdout
    model = methods.load(tmp_path / "model")
    assert model.fingerprint == methods.load(files / "model").fingerprint, "the same file, seed and settings give the same model"
    done = scinterp("annotate", files / "query.h5ad", "--model", tmp_path / "model", "--out", tmp_path / "out.h5ad", "--report", tmp_path / "report.html", "--unknown", *STATE)
    assert done.returncode == 0, done.stderr
    out, query = ad.read_h5ad(tmp_path / "out.h5ad"), ad.read_h5ad(files / "query.h5ad")
    assert (out.X != query.X).nnz == 0 and out.obs_names.equals(query.obs_names) and set(query.obs) < set(out.obs)
    assert out.uns["scinterp"]["fingerprint"] == model.fingerprint and out.obs["scinterp_pred"].dtype == "category"
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page and "src=" not in page and all(str(t) in page.replace("&amp;", "&") for t in out.obs["scinterp_pred"].unique())
    done = scinterp("embed", files / "query.h5ad", tmp_path / "vectors.h5ad", "--method", "scelmo-wa", *STATE)
    assert done.returncode == 0 and ad.read_h5ad(tmp_path / "vectors.h5ad").obsm["X_scelmo_wa"].shape == (query.n_obs, 384), done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out.h5ad", "report.html", "vectors.h5ad"}


def test_what_fit_refuses(run, files, tmp_path):
    fit = ["fit", files / "train.h5ad", *FIT, "--out", tmp_path / "model"]
    refused(run(*fit, "--label", "tissue"), "'tissue'", "label_key= one of")
    refused(run(*fit, "--method", "oracle"), "no method 'oracle'", "lr-hvg")
    refused(run(*fit, "--set", "depth=3"), "depth")
    refused(run(*fit, "--set", "depth"), "key=value")
    refused(run(*fit, "--error", "0"), "between 0 and 1")
    refused(run(*fit, "--error", ".001"), "too few for --error 0.001", "1998")
    refused(run(*fit, "--calibration", ".7", "--validation", ".5"), "too few cells to train on")
    refused(run(*fit, "--layer", "spliced"), "spliced")
    refused(run("fit", tmp_path / "none.h5ad", *FIT, "--out", tmp_path / "model"), "not a file")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "thesis.txt").touch()
    refused(run(*fit[:-1], tmp_path), "is not empty")
    refused(run(*fit[:-1], files / "model"), "already holds")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_annotate_refuses(run, files, tmp_path):
    ask = ["annotate", files / "query.h5ad", "--model", files / "model", *STATE]
    refused(run(*ask, "--out", files / "query.h5ad", "--overwrite"), "is the input itself")
    refused(run(*ask, "--out", tmp_path / "out.csv"), "must end in .h5ad")
    refused(run(*ask, "--out", tmp_path / "out.h5ad", "--report", tmp_path / "page.txt"), "must end in .html")
    (tmp_path / "mine.h5ad").touch()
    refused(run(*ask, "--out", tmp_path / "mine.h5ad"), "is there already", "--overwrite")
    refused(run(*ask[:3], tmp_path, "--out", tmp_path / "out.h5ad"), "no saved method")
    (tmp_path / "empty.h5ad").touch()
    refused(run("annotate", tmp_path / "empty.h5ad", *ask[2:], "--out", tmp_path / "out.h5ad"), "cannot be read as .h5ad")
    refused(run("annotate", files / "query.h5ad", "--model", files / "model", "--out", tmp_path / "out.h5ad"), "pass state='log1p-cp10k'")
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir()} == {"mine.h5ad": 0, "empty.h5ad": 0}


def altered(files, path, change):
    query = ad.read_h5ad(files / "query.h5ad")
    change(query)
    query.write_h5ad(path)
    return path


def as_mouse(a):
    "The genes under the names of their mouse orthologs"
    from scinterp.cells.identifiers import one_ortholog
    told = one_ortholog(a.var_names, "human", "mouse").ortholog
    keep = (told != "") & ~told.duplicated()
    a._inplace_subset_var(keep.to_numpy())
    a.var_names, a.obs["species"] = told[keep].tolist(), "mouse"


def test_queries_that_cannot_be_read(run, files, tmp_path):
    import scanpy as sc
    ask = ["--model", files / "model", "--out", tmp_path / "out.h5ad"]
    scaled = altered(files, tmp_path / "scaled.h5ad", lambda a: setattr(a, "X", sc.pp.scale(a.X.toarray())))
    refused(run("annotate", scaled, *ask), "the state of X is scaled")
    mouse = altered(files, tmp_path / "mouse.h5ad", as_mouse)
    refused(run("annotate", mouse, *ask, *STATE), "the cells are of mouse and the model of human")
    few = altered(files, tmp_path / "few.h5ad", lambda a: a._inplace_subset_var(a.var_names[:150]))
    refused(run("annotate", few, *ask, *STATE), "of the training expression (60% needed)")
    nobody = altered(files, tmp_path / "nobody.h5ad", lambda a: a._inplace_subset_obs([]))
    refused(run("annotate", nobody, *ask, *STATE), "no cells")
    assert not (tmp_path / "out.h5ad").exists()


def test_a_model_that_was_altered(run, files, tmp_path):
    import shutil
    shutil.copytree(files / "model", tmp_path / "model")
    state = tmp_path / "model" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    refused(run("annotate", files / "query.h5ad", "--model", tmp_path / "model", "--out", tmp_path / "out.h5ad", *STATE), "state.safetensors was altered")
    state.unlink()
    refused(run("embed", files / "query.h5ad", tmp_path / "out.h5ad", "--model", tmp_path / "model", *STATE), "state.safetensors is missing")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_unknown_needs_a_calibrated_model(run, files, tmp_path):
    from scinterp.run.annotation import fit_file
    fit_file(files / "train.h5ad", tmp_path / "plain", method="majority", calibration=0, state="log1p-cp10k", say=lambda text: None)
    refused(run("annotate", files / "query.h5ad", "--model", tmp_path / "plain", "--out", tmp_path / "out.h5ad", "--unknown", *STATE), "call calibrate")
    done = run("annotate", files / "query.h5ad", "--model", tmp_path / "plain", "--out", tmp_path / "out.h5ad", "--report", tmp_path / "r.html", *STATE)
    assert done.returncode == 0 and "was not calibrated" in (tmp_path / "r.html").read_text()
    refused(run("embed", files / "query.h5ad", tmp_path / "v.h5ad", "--model", tmp_path / "plain", *STATE), "majority has no cell embedding")
    assert not (tmp_path / "v.h5ad").exists()


def test_scaled_x_beside_counts_is_no_obstacle(run, files, tmp_path):
    "Methods read the counts of a layer where X is scaled; `--layer` names any other"
    import scanpy as sc
    def change(a):
        a.layers["counts"] = a.X.copy()
        a.layers["counts"].data = np.round(a.X.expm1().data)
        a.X = sc.pp.scale(a.X.toarray())
    path = altered(files, tmp_path / "both.h5ad", change)
    for name, more in dict(found=[], named=["--layer", "counts"]).items():
        assert run("annotate", path, "--model", files / "model", "--out", tmp_path / f"{name}.h5ad", *more).returncode == 0
    found, named = (ad.read_h5ad(tmp_path / f"{n}.h5ad") for n in ("found", "named"))
    assert found.obs["scinterp_pred"].tolist() == named.obs["scinterp_pred"].tolist() and (found.X == ad.read_h5ad(path).X).all()
    assert [a.uns["scinterp"]["layer"] for a in (found, named)] == ["X", "counts"]


@pytest.mark.skipif(not DATA, reason="needs the real files of SCINTERP_DATA")
def test_other_donors_are_annotated(run, tmp_path):
    "Four donors of a real set teach, the other four ask"
    train, query = kang()
    rng = np.random.default_rng(0)
    train, query = (a[rng.permutation(a.n_obs)[:1500]].copy() for a in (train, query))
    truth = query.obs.pop("cell_type").astype(str)
    for a, name in ((train, "train"), (query, "query")):
        a.uns.clear()
        a.write_h5ad(tmp_path / f"{name}.h5ad")
    assert run("fit", tmp_path / "train.h5ad", "--method", "lr-hvg", "--set", "penalties=[0.1, 0.01]", "--out", tmp_path / "model").returncode == 0
    assert run("annotate", tmp_path / "query.h5ad", "--model", tmp_path / "model", "--out", tmp_path / "out.h5ad", "--unknown").returncode == 0
    out = ad.read_h5ad(tmp_path / "out.h5ad").obs["scinterp_pred"].astype(str)
    named = out != "unknown"
    assert (out[named] == truth[named]).mean() > .85 and .0 <= 1 - named.mean() < .15
