"""What `scinterp doctor` says of real files, of bad ones, and of ones made wrong on purpose."""
import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import ROOT
from scipy import sparse

from scinterp.cells.datasets import load
from scinterp.cells.nomenclature import bundled_genes
from scinterp.cells.normalise import log_normalised
from scinterp.cells.preflight import preflight
from scinterp.core import DataError
from scinterp.run.cli import main

SHARED = ROOT.parent / "shared" / "data"
FILES = sorted(SHARED.glob("*.h5ad"))
GENES = load("demo").var_names


def cells(X=None, genes=GENES[:50], labels=("T cell", "B cell"), n=40, **parts):
    "An AnnData with names of real genes"
    X = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (n, len(genes))).astype(np.float32)) if X is None else X
    obs = pd.DataFrame({"cell_type": np.resize(labels, X.shape[0])}, index=[f"cell{i}" for i in range(X.shape[0])])
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes), **parts)


def levels(report):
    return {f.check: f.level for f in report.findings}


# real files


@pytest.mark.skipif(not FILES, reason="the labelled files of the data folder are not here")
@pytest.mark.slow(30)
def test_real_files_show_species_state_and_match(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(SHARED))
    for path in FILES:
        report, profile = preflight(path, strict=False), path.stem.startswith("ref_profiles")
        assert report.species == path.stem.split("_")[2 if profile else 0], path.stem
        assert report.identifiers == "symbol" and report.recognised_mass > 0.96, path.stem
        assert report.state == ("unknown" if profile else "counts"), path.stem
        assert {f.check for f in report.problems} == ({"state"} if profile else set()), path.stem


@pytest.mark.skipif(not FILES, reason="the labelled files of the data folder are not here")
def test_without_the_table_of_names_a_transcriptome_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.delenv("SCINTERP_DATA", raising=False)
    report = preflight(SHARED / "human_pbmc_kang_ifnb.h5ad", strict=False)
    assert report.species == "human" and report.recognised_mass < 0.6
    assert [f.fix for f in report.problems] == [f"run `scinterp fetch genes` once: only the bundled names of {len(bundled_genes()):,} genes are on this machine"]


@pytest.mark.skipif(not FILES, reason="the labelled files of the data folder are not here")
def test_ids_are_recognised_in_a_real_file(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(SHARED))
    kang = ad.read_h5ad(SHARED / "human_pbmc_kang_8donors_1287genes.h5ad")
    kang.var["symbol"], kang.var_names = kang.var_names, kang.var["ensembl"].astype(str)
    plain = preflight(kang, strict=False)
    kang.var_names = [f"{g}.7" for g in kang.var_names]
    versioned = preflight(kang, strict=False)
    assert [plain.identifiers, versioned.identifiers] == ["ensembl", "ensembl-version"]
    assert plain.recognised_mass == versioned.recognised_mass > 0.9
    assert plain.species == versioned.species == "human"


@pytest.mark.skipif(not FILES, reason="the labelled files of the data folder are not here")
def test_mouse_genes_in_capitals_are_not_taken_for_human(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(SHARED))
    gut = ad.read_h5ad(SHARED / "mouse_gut_mca.h5ad")
    gut.var_names = gut.var_names.str.upper()
    for species in (None, "mouse"):
        with pytest.raises(DataError, match="only mouse has|written as those of human"):
            preflight(gut[:, ~gut.var_names.duplicated()].copy(), species=species)


def test_positions_are_no_ids():
    made = cells()
    made.var["gene_symbols"], made.var_names = made.var_names, [str(i) for i in range(50)]
    report = preflight(made, strict=False)
    assert report.identifiers == "position" and "gene_key='gene_symbols'" in report.call and report.recognised_genes == 0


# what scanpy's users do to a matrix


def scaled(a):
    sc.pp.scale(a)


def log2(a):
    sc.pp.normalize_total(a, target_sum=1e6)
    sc.pp.log1p(a, base=2)
    a.uns.pop("log1p")


def default_total(a):
    sc.pp.normalize_total(a)
    sc.pp.log1p(a)


def no_log(a):
    sc.pp.normalize_total(a, target_sum=1e4)


@pytest.mark.parametrize("change,state,level", [(lambda a: None, "counts", "ok"), (log2, "log2p1-cpm", "note"), (default_total, "log1p-cp50", "note"),
                                                (no_log, "cp10k", "note"), (scaled, "scaled", "problem")])
def test_states_of_scanpy(change, state, level):
    made = cells()
    change(made)
    report = preflight(made, strict=False)
    assert report.state.startswith(state) and levels(report)["state"] == level


def test_scaled_X_points_to_raw():
    made = cells()
    sc.pp.normalize_total(made, target_sum=1e4)
    sc.pp.log1p(made)
    made.raw = made
    sc.pp.scale(made)
    with pytest.raises(DataError, match="pass layer='raw'"):
        preflight(made)
    assert preflight(made, layer="raw").state == "log1p-cp10k"


def test_genes_chosen_after_normalising_show_their_logarithm():
    made = cells(n=60, genes=GENES[:400])
    sc.pp.normalize_total(made, target_sum=1e4)
    sc.pp.log1p(made)
    with pytest.raises(DataError, match="pass state='log1p-cp10k'"):
        preflight(made[:, :200].copy())
    assert preflight(made[:, :200].copy(), state="log1p-cp10k").state == "log1p-cp10k"


def test_a_stated_state_that_the_values_deny():
    with pytest.raises(DataError, match="X cannot be log1p-cp10k: its values are whole numbers"):
        preflight(cells(), state="log1p-cp10k")


# species


@pytest.mark.parametrize("genes,told,finding", [(GENES[:50], "mouse", "written as those of human"), ([g.capitalize() for g in GENES[:50]], "human", "written as those of mouse"),
                                                ([f"ENSRNOG{i:011}" for i in range(50)], None, "cannot be told")])
def test_wrong_species(genes, told, finding):
    with pytest.raises(DataError, match=finding):
        preflight(cells(genes=genes), species=told)


# the command line


def bad_files(folder):
    "Files that are wrong, with the words that must be said of each"
    good = folder / "good.h5ad"
    cells().write_h5ad(good)
    data = good.read_bytes()
    (folder / "truncated.h5ad").write_bytes(data[: len(data) // 2])
    (folder / "text.h5ad").write_text("gene\tcell\n" * 100)
    (folder / "empty.h5ad").write_bytes(b"")
    cells()[:0].copy().write_h5ad(folder / "nocells.h5ad")
    cells()[:, :1].copy().write_h5ad(folder / "onegene.h5ad")
    no_X = cells()
    ad.AnnData(obs=no_X.obs, var=no_X.var).write_h5ad(folder / "noX.h5ad")
    with_nan = cells(X=np.full((40, 50), np.nan, np.float32))
    with_nan.write_h5ad(folder / "nan.h5ad")
    for name, labels in dict(nolabels=[np.nan], oneclass=["T cell"], somenan=["T cell", "B cell", None]).items():
        made = cells()
        made.obs["cell_type"] = pd.Categorical(pd.Series(np.resize(np.array(labels, dtype=object), made.n_obs)))
        made.write_h5ad(folder / f"{name}.h5ad")
    return {"truncated": "cannot be read as .h5ad", "text": "cannot be read as .h5ad", "empty": "cannot be read as .h5ad", "missing": "not a file", "nocells": "no cells", "onegene": "1 gene",
            "noX": "no expression", "nan": "missing (NaN)", "nolabels": "is empty for every cell", "oneclass": "one type only", "somenan": "have no 'cell_type'"}


@pytest.mark.slow(20)
def test_bad_files_are_one_sentence_and_exit_2(scinterp, tmp_path, capsys, monkeypatch):
    said_of = bad_files(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    for name, words in said_of.items():
        monkeypatch.setattr("sys.argv", ["scinterp", "doctor", str(tmp_path / f"{name}.h5ad")])
        with pytest.raises(SystemExit) as end:
            main()
        said = "".join(capsys.readouterr())
        assert end.value.code == 2 and words in said and "Traceback" not in said, (name, said)
    done = scinterp("doctor", tmp_path / "truncated.h5ad")  # as a process, too
    assert done.returncode == 2 and done.stderr.startswith("scinterp: truncated.h5ad cannot be read") and done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_report_as_json(scinterp, tmp_path):
    made = cells()
    made.obs["kind"] = made.obs.pop("cell_type")
    made.write_h5ad(tmp_path / "cells.h5ad")
    done = scinterp("doctor", tmp_path / "cells.h5ad", "--label", "kind", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"] and report["species"] == "human" and report["state"] == "counts"
    missing = scinterp("doctor", tmp_path / "cells.h5ad", "--label", "kinds")
    assert missing.returncode == 2 and "did you mean kind?" in missing.stdout


def test_doctor_of_the_machine(scinterp):
    done = scinterp("doctor", "--json")
    checks = {f["check"] for f in json.loads(done.stdout)}
    assert done.returncode == 0 and {"packages", "device", "text model", "gene names", "cache"} <= checks


# what a reviewer's files taught


def damaged(path, change):
    "A file of real genes in which one thing is changed under anndata's nose"
    cells(X=sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (300, 50)).astype(np.float32))).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.parametrize("change", [lambda f: f["X/indices"].__setitem__(0, 10**8), lambda f: f["X/indices"].__setitem__(0, -5), lambda f: f["X/indptr"].__setitem__(5, 10**9),
                                    lambda f: f["X"].attrs.__setitem__("shape", [300, 7]), lambda f: f["var"].attrs.__delitem__("_index")],
                         ids=["far", "negative", "indptr", "shape", "var"])
def test_a_damaged_file_is_one_sentence(tmp_path, change):
    with pytest.raises(DataError, match="damaged"):
        preflight(damaged(tmp_path / "cells.h5ad", change))


def test_annotations_of_old_files_are_read():
    old = Path(sc.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    report = preflight(old, strict=False)
    assert report.n_cells == 700 and report.species == "human" and report.states["X"] == "scaled"


def test_logarithms_of_unscaled_counts_are_not_taken_for_scaled_ones():
    made = cells(genes=GENES[:400], n=60)
    made.X = made.X * 50
    made.X.data = np.log1p(made.X.data)
    assert preflight(made).state == "log1p-counts"
    some = made[:, :300].copy()
    some.X = (some.X * 0.999).tocsr()  # no longer whole, and far above 10,000 a cell
    with pytest.raises(DataError, match="cannot be log1p-cp10k: its cells add up to as much as"):
        preflight(some, state="log1p-cp10k")


def test_negative_values_deny_counts():
    made = cells()
    sc.pp.scale(made)
    with pytest.raises(DataError, match="cannot be counts: it has negative values"):
        preflight(made, state="counts")


def test_a_stale_note_is_passed_over():
    made = cells()
    made.uns["scinterp_source"] = {"state": "counts", "species": "human"}
    sc.pp.normalize_total(made, target_sum=1e4)
    sc.pp.log1p(made)
    report = preflight(made)
    assert report.state == "log1p-cp10k" and "not counts as the file notes" in str(report)
    assert abs(log_normalised(made) - sparse.csr_matrix(made.X)).max() < 1e-5
    sc.pp.scale(made)
    with pytest.raises(DataError, match="the state of X is scaled"):
        log_normalised(made)


def test_masks_and_rounded_values_are_noticed():
    made = cells(layers={"aaa_mask": sparse.csr_matrix((40, 50), dtype=bool), "counts": sparse.csr_matrix(np.full((40, 50), 2.0))})
    made.X = made.X.sqrt()
    report = preflight(made, strict=False)
    assert report.states["aaa_mask"] == "binary" and report.findings[-2].arguments == {"layer": "counts"}
    made.X = (made.layers["counts"] > 0).astype(np.float32)
    assert "only 0 and 1" in str(preflight(made))


def test_names_that_are_commands_to_a_terminal_are_written_out():
    made = cells()
    made.var_names = ["\x1b[31mCD3D", *made.var_names[1:]]
    assert "\x1b" not in str(preflight(made, strict=False))


def test_backed_cells_are_not_normalised_by_accident(tmp_path):
    cells().write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match="to_memory"):
        log_normalised(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"))


def test_cells_of_two_species_are_refused_in_words_that_say_why():
    cells = load("demo")
    cells.uns["scinterp_source"] = {**cells.uns["scinterp_source"], "species": "human+mouse"}
    with pytest.raises(DataError, match="of human and mouse side by side .*, and a pre-flight is of one species: look at the sets they were joined from"):
        preflight(cells)
