"""Each recipe end to end: files with the upstream names, columns, headers and compression, from a server on this machine, through `build` and `load`."""
import gzip
import hashlib
import io
import json
import sys
import tarfile
import types
import zipfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from loopback import cut, loopback, status
from scipy import sparse

from scinterp.cells import datasets
from scinterp.core import DataError

RNG = np.random.default_rng(0)


def toml(value):
    "A value as TOML writes it"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}" if isinstance(value, dict) else json.dumps(value)


class Mirror:
    "A server on this machine, and a registry whose files are there"

    def __init__(self, site, folder):
        self.site, self.folder, self.entries = site, folder, {}

    def add(self, name, files, **changes):
        "Serve `files` under the names of the registry's entry, which is changed as told"
        entry = datasets.registry()[name] | changes
        assert set(files) <= {f["name"] for f in entry.get("files", [])}, "a file that the registry does not name"
        for file in entry.get("files", []):
            self.site.files[f"{name}/{file['name']}"] = files[file["name"]]
        entry["files"] = [{"name": f["name"], "urls": [self.site.url(f"{name}/{f['name']}")]} for f in entry.get("files", [])]
        self.entries[name] = entry
        self.write()

    def write(self):
        lines = [f"[{n}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in e.items()) for n, e in self.entries.items()]
        (self.folder / "mirror.toml").write_text("\n".join(lines))

    def downloads(self, name):
        return self.folder / "cache" / "downloads" / name  # of files without a known hash

    def built(self, name):
        return self.folder / "cache" / "datasets" / f"{name}.h5ad"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    for key in ("SCINTERP_DATA", "SCINTERP_OFFLINE", "SCINTERP_REGISTRY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path / "cache"))
    with loopback() as site:
        mirror = Mirror(site, tmp_path)
        mirror.write()
        monkeypatch.setenv("SCINTERP_REGISTRY", str(tmp_path / "mirror.toml"))
        yield mirror


def counts(cells, genes):
    return RNG.poisson(.6, (cells, genes)) * (RNG.random((cells, genes)) < .5)


def mtx(X, comments="%\n"):
    "Genes x cells as Cell Ranger writes it, from cells x genes"
    genes, cells = np.nonzero(X.T)
    body = "".join(f"{g + 1} {c + 1} {X[c, g]}\n" for g, c in zip(genes, cells))
    return f"%%MatrixMarket matrix coordinate integer general\n{comments}{X.shape[1]} {X.shape[0]} {len(genes)}\n{body}".encode()


def tar(files, mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as t:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return out.getvalue()


def h5ad(adata, folder):
    adata.write_h5ad(folder / "made.h5ad")
    return (folder / "made.h5ad").read_bytes()


# --- the mouse atlas

TYPES = ["Epiblast", "Gut", "PGC", "Forebrain/Midbrain/Hindbrain", "Def. endoderm"]


def atlas(n=400, genes=30):
    "Columns, order and missing values of `meta.tab`; doublets and stripped nuclei have no type"
    X = counts(n, genes)
    state = RNG.choice(["ok", "doublet", "stripped"], n, p=[.8, .1, .1])
    types = np.where(state == "ok", RNG.choice(TYPES, n, p=[.5, .3, .02, .1, .08]), "NA")
    meta = pd.DataFrame({
        "cell": [f"cell_{i + 1}" for i in range(n)], "barcode": ["AAAGGCCTCCACAA"] * n, "sample": RNG.integers(1, 4, n), "pool": 1,
        "stage": RNG.choice(["E6.5", "mixed_gastrulation"], n), "sequencing.batch": 1, "theiler": "TS9", "doub.density": RNG.random(n),
        "doublet": np.where(state == "doublet", "TRUE", "FALSE"), "cluster": 5, "cluster.sub": 1, "cluster.stage": 2, "cluster.theiler": 2,
        "stripped": np.where(state == "stripped", "TRUE", "FALSE"), "celltype": types, "colour": "635547", "umapX": RNG.random(n), "umapY": 0.5})
    names = pd.DataFrame({"id": [f"ENSMUSG{i:011d}" for i in range(genes)], "symbol": ["Xkr4", "Gm1992", *["Pcdha11"] * 2, *[f"Gene{i}" for i in range(genes - 4)]]})
    files = {"raw_counts.mtx.gz": gzip.compress(mtx(X)), "genes.tsv.gz": gzip.compress(names.to_csv(sep="\t", header=False, index=False).encode()),
             "meta.tab.gz": gzip.compress(meta.to_csv(sep="\t", index=False).encode())}
    return X, meta, files


SMALL = {"options": {"cells": 150, "types": 5, "seed": 0}}


def test_mouse(mirror):
    X, meta, files = atlas()
    mirror.add("mouse-13k", files, **SMALL)
    cells = datasets.load("mouse-13k")
    rows = meta.set_index("cell").loc[cells.obs_names]
    assert cells.n_obs == 150 and (rows["celltype"] == cells.obs["cell_type"].astype(str)).all() and set(rows["celltype"]) == set(TYPES)
    assert not ((rows["doublet"] == "TRUE") | (rows["stripped"] == "TRUE")).any()
    np.testing.assert_array_equal(cells.X.toarray(), X[meta["cell"].isin(cells.obs_names)])
    np.testing.assert_array_equal(cells.layers["counts"].toarray(), cells.X.toarray())
    assert cells.X.dtype == np.float32 and sparse.issparse(cells.X)
    assert cells.var["symbol"].tolist()[:4] == ["Xkr4", "Gm1992", "ENSMUSG00000000002", "ENSMUSG00000000003"], "two ids share a symbol: both keep their id"
    known = dict(name="mouse-13k", registered=True, state="counts", species="mouse", batch="sequencing.batch", donor="sample", condition="stage")
    assert cells.uns["scinterp_source"] == known
    assert {"sample", "stage"} <= set(cells.obs)
    assert datasets.load("mouse-13k", gene_key="symbol").var_names[0] == "Xkr4"


def test_mouse_from_the_archive_of_arrayexpress(mirror):
    "The same tables, unpacked and with commas, put in place by hand"
    X, meta, files = atlas()
    mirror.add("mouse-13k", files, **SMALL)
    first = datasets.load("mouse-13k")
    mirror.built("mouse-13k").unlink()
    for path in mirror.downloads("mouse-13k").iterdir():
        path.unlink()
    by_hand = {n: gzip.decompress(b) for n, b in files.items()}
    by_hand["meta.tab.gz"] = meta.to_csv(index=False).encode()
    for name, content in by_hand.items():
        (mirror.downloads("mouse-13k") / name).write_bytes(content)
    asked = len(mirror.site.requests)
    again = datasets.load("mouse-13k")
    assert (again.obs_names == first.obs_names).all() and (again.X != first.X).nnz == 0, "and it agrees with the first build"
    assert len(mirror.site.requests) == asked


def test_built_once(mirror):
    mirror.add("mouse-13k", atlas()[2], **SMALL)
    assert datasets.table().loc["mouse-13k", "where"] == "to download"
    datasets.load("mouse-13k")
    asked = len(mirror.site.requests)
    datasets.load("mouse-13k")
    assert len(mirror.site.requests) == asked == 3
    assert datasets.table().loc["mouse-13k", "where"] == "here"
    lock = json.loads(mirror.built("mouse-13k").with_suffix(".lock.json").read_text())
    assert (lock["cells"], lock["types"], len(lock["cells_sha256"])) == (150, 5, 64)
    assert set(lock["files"]) == {"raw_counts.mtx.gz", "genes.tsv.gz", "meta.tab.gz"}


def test_truncated_download_is_resumed(mirror):
    mirror.add("mouse-13k", atlas()[2], **SMALL)
    mirror.site.faults["mouse-13k/raw_counts.mtx.gz"] = [cut(500)]
    assert datasets.load("mouse-13k").n_obs == 150
    assert mirror.site.asked("mouse-13k/raw_counts.mtx.gz") == [None, "bytes=500-"]


@pytest.mark.parametrize("name", ["raw_counts.mtx.gz", "genes.tsv.gz", "meta.tab.gz"])
def test_file_that_is_cut_on_the_server(mirror, name):
    "No hash is known, the transfer is whole, the file is not: the recipe notices, nothing is built, and the advice works"
    files = atlas()[2]
    mirror.add("mouse-13k", files, **SMALL)
    mirror.site.files[f"mouse-13k/{name}"] = files[name][:-40]
    with pytest.raises(DataError, match=f"{name} .*delete it and its .sha256, and build again"):
        datasets.load("mouse-13k")
    assert not mirror.built("mouse-13k").exists()
    mirror.site.files[f"mouse-13k/{name}"] = files[name]
    (mirror.downloads("mouse-13k") / name).unlink()
    (mirror.downloads("mouse-13k") / f"{name}.sha256").unlink()
    assert datasets.load("mouse-13k").n_obs == 150


def test_matrix_that_is_cut_between_lines(mirror):
    "A text that ends early is a shorter text: the header tells"
    files = atlas()[2]
    lines = gzip.decompress(files["raw_counts.mtx.gz"]).splitlines(keepends=True)
    mirror.add("mouse-13k", files | {"raw_counts.mtx.gz": gzip.compress(b"".join(lines[:-3]))}, **SMALL)
    with pytest.raises(DataError, match=f"holds {len(lines) - 6} of {len(lines) - 3} entries"):
        datasets.load("mouse-13k")


def test_altered_download(mirror):
    "Where the hash is known, other bytes do not pass"
    files = atlas()[2]
    mirror.add("mouse-13k", files, **SMALL)
    mirror.entries["mouse-13k"]["files"][1]["sha256"] = "0" * 64
    mirror.write()
    with pytest.raises(DataError, match="genes.tsv.gz could not be downloaded .*SHA-256 differs.*put the file at"):
        datasets.load("mouse-13k")


def test_a_file_with_a_known_hash_is_shared(mirror):
    "Two sets made from the same files: they are fetched once"
    files = atlas()[2]
    mirror.add("mouse-13k", files, **SMALL)
    for file in mirror.entries["mouse-13k"]["files"]:
        file["sha256"] = hashlib.sha256(files[file["name"]]).hexdigest()
    mirror.entries["again"] = mirror.entries["mouse-13k"] | {"options": {"cells": 90, "types": 5}}
    mirror.write()
    assert datasets.load("mouse-13k").n_obs == 150 and datasets.load("again").n_obs == 90
    assert len(mirror.site.requests) == 3


def test_files_of_two_sets(mirror):
    mirror.add("mouse-13k", atlas(400)[2] | {"meta.tab.gz": atlas(300)[2]["meta.tab.gz"]}, **SMALL)
    with pytest.raises(DataError, match="raw_counts.mtx.gz is 30 x 400, with names for 30 genes and 300 cells"):
        datasets.load("mouse-13k")


def test_another_version_of_the_atlas(mirror):
    mirror.add("mouse-13k", atlas()[2], options={"cells": 150, "types": 37})
    with pytest.raises(DataError, match="names 5 cell types and the atlas has 37"):
        datasets.load("mouse-13k")


def test_source_that_changed_is_refused(mirror):
    "The second build gives other counts than the first: the lock tells"
    X, meta, files = atlas()
    mirror.add("mouse-13k", files, **SMALL)
    datasets.load("mouse-13k")
    X[:, 0] += 1
    mirror.site.files["mouse-13k/raw_counts.mtx.gz"] = gzip.compress(mtx(X))
    mirror.built("mouse-13k").unlink()
    (mirror.downloads("mouse-13k") / "raw_counts.mtx.gz").unlink()
    with pytest.raises(DataError, match="raw_counts.mtx.gz is not the file expected .*delete it and raw_counts.mtx.gz.sha256"):
        datasets.load("mouse-13k")
    for name in ("raw_counts.mtx.gz", "raw_counts.mtx.gz.sha256"):
        (mirror.downloads("mouse-13k") / name).unlink()
    with pytest.raises(DataError, match=r"comes out differently from its first build here \(matrix_sha256\)"):
        datasets.load("mouse-13k")
    assert not mirror.built("mouse-13k").exists()


def test_registry_that_knows_other_cells(mirror):
    mirror.add("mouse-13k", atlas()[2], cells_sha256="0" * 64, **SMALL)
    with pytest.raises(DataError, match="other cells or labels than the registry says"):
        datasets.load("mouse-13k")


@pytest.mark.parametrize("damage", ["cut", "text", "labels"])
def test_damaged_copy_is_made_again(mirror, damage):
    mirror.add("mouse-13k", atlas()[2], **SMALL)
    first, path = datasets.load("mouse-13k"), mirror.built("mouse-13k")
    if damage == "labels":
        altered = ad.read_h5ad(path)
        altered.obs["celltype"] = altered.obs["celltype"].astype(str).to_numpy()[::-1]
        altered.write_h5ad(path)
    else:
        path.write_bytes(path.read_bytes()[:9000] if damage == "cut" else b"notes")
    again = datasets.load("mouse-13k")
    assert (again.obs["cell_type"] == first.obs["cell_type"]).all() and (again.X != first.X).nnz == 0


def test_offline_says_what_to_bring_and_uses_it(mirror, monkeypatch):
    files = atlas()[2]
    mirror.add("mouse-13k", files, **SMALL)
    monkeypatch.setenv("SCINTERP_OFFLINE", "1")
    with pytest.raises(DataError, match=r"SCINTERP_OFFLINE forbids downloads: get it from http\S+ and put it at \S+raw_counts.mtx.gz"):
        datasets.load("mouse-13k")
    assert mirror.site.requests == []
    for name, content in files.items():
        (mirror.downloads("mouse-13k")).mkdir(parents=True, exist_ok=True)
        (mirror.downloads("mouse-13k") / name).write_bytes(content)
    assert datasets.load("mouse-13k").n_obs == 150


def test_missing_on_the_server(mirror):
    mirror.add("mouse-13k", atlas()[2], **SMALL)
    mirror.site.faults["mouse-13k/raw_counts.mtx.gz"] = [status(404)] * 3
    with pytest.raises(DataError, match="raw_counts.mtx.gz could not be downloaded .*HTTP 404"):
        datasets.load("mouse-13k")


def test_sampling_at_full_size():
    "13,000 of as many cells as the atlas has, in its 37 types"
    from scinterp.cells.recipes import sample_cells

    sizes = np.maximum(15, (116_312 * RNG.dirichlet(np.full(37, .8))).astype(int))
    labels = np.repeat([f"type {i}" for i in range(37)], sizes)
    cells = [f"cell_{i}" for i in range(len(labels))]
    taken = sample_cells(cells, labels, 13_000)
    found = pd.Series(labels[taken]).value_counts()
    assert len(taken) == 13_000 and len(found) == 37 and (found.sort_index() >= np.minimum(20, pd.Series(labels).value_counts().sort_index())).all()


# --- the Census

STAGES = ["Carnegie stage 17", "9th week post-fertilization stage", "adult stage", "15th week post-fertilization stage", "newborn stage (0-28 days)"]


@pytest.fixture
def census(monkeypatch):
    "A module with the two calls that are made, over a table with the Census's columns"
    n, genes = 900, 12
    kinds = ["erythrocyte", "hepatocyte", "neuron", "unknown", "rare cell"]
    obs = pd.DataFrame({
        "soma_joinid": np.arange(n) * 3, "is_primary_data": RNG.random(n) < .9, "cell_type": RNG.choice(kinds, n, p=[.5, .3, .1, .09, .01]),
        "development_stage": RNG.choice(STAGES, n), "donor_id": RNG.choice(["D1", "D2"], n), "dataset_id": "d3566d6a", "tissue": "liver",
        "tissue_general": "liver", "assay": "10x 3' v3", "disease": "normal", "sex": "unknown"}).astype({"cell_type": "category", "development_stage": "category"})
    X = sparse.csr_matrix(counts(n, genes).astype(np.float32))

    class Table:
        def __init__(self, frame):
            self.frame = frame

        def to_pandas(self):
            return self.frame

        def read(self, value_filter, column_names):
            assert value_filter == "is_primary_data == True"
            rows = obs.loc[obs["is_primary_data"], column_names]
            return iter([Table(rows[i:i + 100]) for i in range(0, len(rows), 100)])

    class Census(dict):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.closed = True

    module = types.ModuleType("cellxgene_census")
    module.opened = []

    def open_soma(*, census_version):
        module.opened.append(census_version)
        return Census(census_data={"homo_sapiens": types.SimpleNamespace(obs=Table(None))})

    def get_anndata(census, organism, *, X_name, obs_coords, obs_column_names):
        assert organism == "Homo sapiens" and X_name == "raw"
        rows = np.flatnonzero(obs["soma_joinid"].isin(obs_coords))  # the Census answers in its own order
        ids, symbols = [f"ENSG{i:011d}" for i in range(genes)], [f"G{i}" for i in range(genes)]
        var = pd.DataFrame({"soma_joinid": range(genes), "feature_id": ids, "feature_name": symbols, "feature_length": 900})
        return AnnData(X[rows], obs=obs.iloc[rows][obs_column_names].rename(index=str), var=var.rename(index=str))

    module.open_soma, module.get_anndata, module.obs, module.X = open_soma, get_anndata, obs, X
    monkeypatch.setitem(sys.modules, "cellxgene_census", module)
    return module


def test_human(mirror, census):
    mirror.add("human-10k", {}, options={"release": "2025-11-08", "cells": 60, "types": 3, "seed": 0})
    cells = datasets.load("human-10k")
    rows = census.obs.set_index(census.obs["soma_joinid"].astype(str)).loc[cells.obs_names]
    assert census.opened == ["2025-11-08"] and cells.n_obs == 60
    assert {datasets.registry()["human-10k"][k] for k in ("study", "donor", "stage")} <= set(cells.obs)
    assert set(cells.obs["cell_type"]) == {"erythrocyte", "hepatocyte", "neuron"}, "the three most frequent; unknown is no type"
    assert set(rows["development_stage"]) == set(STAGES) - {"adult stage", "newborn stage (0-28 days)"} and rows["is_primary_data"].all()
    np.testing.assert_array_equal(cells.X.toarray(), census.X[rows["soma_joinid"].to_numpy() // 3].toarray())
    assert {"donor_id", "dataset_id", "tissue", "development_stage"} <= set(cells.obs) and cells.var["symbol"].iloc[3] == "G3"
    assert "substitute" in datasets.registry()["human-10k"]["title"]
    datasets.load("human-10k")
    assert len(census.opened) == 1, "asked once"


ORDINALS = ["9th", "10th", "11th", "12th", "13th", "14th", "15th", "16th", "17th", "18th", "19th", "20th", "21st", "22nd", "23rd", "24th", "25th", "26th", "37th", "38th"]
BEFORE_BIRTH = [  # terms of the Human Developmental Stages ontology that are parts of its prenatal stage, with their synonyms, and what older releases said
    "prenatal stage", "embryonic stage", "embryonic human stage", "embryo stage", "fetal stage", "fetus stage", "foetus stage", "cleavage stage", "morula stage",
    "blastula stage", "gastrula stage", "neurula stage", "organogenesis stage", "first trimester", "second and third trimester", "third trimester stage", "CS01",
    "CS05a", *[f"Carnegie stage {i:02d}" for i in range(1, 24)], "Carnegie stage 05a", "Carnegie stage 06b", "third LMP month human stage",
    *[f"{nth} week post-fertilization {what}" for nth in ORDINALS for what in ("stage", "human stage")], "8th week post-fertilisation stage",
    *[f"{nth} LMP month stage" for nth in ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")]]
AFTER_BIRTH = [
    "postnatal stage", "post-embryonic stage", "post-embryonic human stage", "immature stage", "nursing stage", "newborn stage", "newborn stage (0-28 days)",
    "newborn human stage", "pediatric stage", "child stage", "child stage (1-4 yo)", "infant stage", "under-1-year-old stage", "1-month-old stage", "18-month-old stage",
    "1-year-old stage", "third decade stage", "sixth decade human stage", "juvenile stage (5-14 yo)", "adolescent stage", "prime adult stage", "adult stage",
    "late adult stage", "mature stage", "middle aged stage", "80 year-old and over stage", "life cycle stage", "life cycle", "unknown", "na", ""]


@pytest.mark.parametrize("stages, before", [(BEFORE_BIRTH, True), (AFTER_BIRTH, False)])
def test_stages_before_and_after_birth(stages, before):
    from scinterp.cells.recipes import is_prenatal

    assert [s for s in stages if is_prenatal(s) is not before] == []


def test_human_estimates_are_rounded_and_other_values_refused(mirror, census):
    "Reads that were shared out give counts with decimals; normalised values must not become counts by rounding"
    census.X.data[:] = census.X.data * 30 + 0.25
    mirror.add("human-10k", {}, options={"release": "2025-11-08", "cells": 60, "types": 3, "seed": 0})
    cells = datasets.load("human-10k")
    rows = census.obs["soma_joinid"].searchsorted(cells.obs_names.astype(int))
    np.testing.assert_array_equal(cells.X.toarray(), np.round(census.X[rows].toarray()))
    census.obs.loc[300:, "dataset_id"] = "logged"
    values = census.X.data[census.X.indptr[300]:]
    values[:] = np.log1p(values)
    mirror.add("human-10k", {}, options={"release": "2025-11-08", "cells": 61, "types": 3, "seed": 0})
    mirror.built("human-10k").unlink()
    with pytest.raises(DataError, match="study logged of the Census gives no counts"):
        datasets.load("human-10k")


def test_human_without_the_package(mirror, monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    with pytest.raises(DataError, match=r"pip install 'scinterp\[census\]'"):
        datasets.load("human-10k")


def test_human_offline(mirror, census, monkeypatch):
    monkeypatch.setenv("SCINTERP_OFFLINE", "1")
    with pytest.raises(DataError, match="SCINTERP_OFFLINE forbids it.*copy human-10k.h5ad to the folder of SCINTERP_DATA"):
        datasets.load("human-10k")
    assert census.opened == []


# --- the sets of scELMo and GenePT


def pbmc(folder):
    X = counts(30, 12)
    cells = [f"{''.join(RNG.choice(list('ACGT'), 14))}-1" for _ in range(30)]
    genes = "".join(f"ENSG{i:011d}\tG{i}\n" for i in range(12))
    base = "filtered_gene_bc_matrices/hg19/"
    archive = tar({base + "barcodes.tsv": "\n".join(cells).encode() + b"\n", base + "genes.tsv": genes.encode(), base + "matrix.mtx": mtx(X, "%\n")}, "w:gz")
    obs = pd.DataFrame({"n_genes": 5, "louvain": pd.Categorical(RNG.choice(["CD4 T cells", "B cells"], 25))}, index=cells[::-1][:25])
    processed = AnnData(np.zeros((25, 3), np.float32), obs=obs)
    return X, cells, obs, {"pbmc3k_filtered_gene_bc_matrices.tar.gz": archive, "pbmc3k_processed.h5ad": h5ad(processed, folder)}


def test_pbmc3k(mirror, tmp_path):
    X, names, obs, files = pbmc(tmp_path)
    mirror.add("pbmc3k", files)
    cells = datasets.load("pbmc3k")
    assert cells.obs_names.tolist() == names[::-1][:25] and (cells.obs["cell_type"].astype(str) == obs["louvain"].astype(str)).all()
    np.testing.assert_array_equal(cells.X.toarray(), X[::-1][:25])


def test_pbmc3k_second_source(mirror, tmp_path):
    files = pbmc(tmp_path)[3]
    mirror.add("pbmc3k", files)
    mirror.site.files["mirror.h5ad"] = files["pbmc3k_processed.h5ad"]
    del mirror.site.files["pbmc3k/pbmc3k_processed.h5ad"]
    mirror.entries["pbmc3k"]["files"][1]["urls"].append(mirror.site.url("mirror.h5ad"))
    mirror.write()
    assert datasets.load("pbmc3k").n_obs == 25


def test_hpancreas(mirror, tmp_path):
    genes = [f"G{i}" for i in range(9)]
    parts, X = {}, {}
    for name, n in (("demo_train.h5ad", 20), ("demo_test.h5ad", 10)):
        X[name] = np.log1p(counts(n, 9)).astype(np.float32)
        order = genes if n == 20 else genes[::-1]
        obs = pd.DataFrame({"Celltype": pd.Categorical(RNG.choice(["alpha", "beta"], n))}, index=map(str, range(n)))
        parts[name] = h5ad(AnnData(X[name] if n == 20 else X[name][:, ::-1], obs=obs, var=pd.DataFrame({"Gene Symbol": order}, index=order)), tmp_path)
    mirror.add("hpancreas", parts)
    cells = datasets.load("hpancreas")
    assert cells.obs["part"].value_counts().to_dict() == {"reference": 20, "query": 10} and cells.obs_names.is_unique
    np.testing.assert_array_equal(cells.X.toarray(), np.vstack(list(X.values())))
    assert cells.uns["scinterp_source"]["state"] == "" and "counts" not in cells.layers, "not counts, and not claimed to be"


def gsm(X, cells, style):
    "A table of GSE155468: tabs, genes as rows; R leaves out the name over the genes"
    rows = "\n".join("\t".join([f"G{g}", *map(str, X[:, g])]) for g in range(X.shape[1]))
    return gzip.compress(f"{'' if style == 'R' else chr(9)}{chr(9).join(cells)}\n{rows}\n".encode())


def vessel(folder, labelled=40):
    samples = {"GSM4704931_Con4": 20, "GSM4704932_Con6": 15, "GSM4704934_TAA1": 25}
    donors = {"Con4": "control_1", "Con6": "control_2", "TAA1": "affected_1"}
    X, files, obs = {}, {"../../escape.txt": b"x"}, []
    barcodes = sorted({"".join(RNG.choice(list("ACGT"), 16)) for _ in range(40)})
    for i, (name, n) in enumerate(samples.items()):
        donor = name.split("_")[1]
        X[donor] = counts(n, 8)
        files[f"{name}.txt.gz"] = gsm(X[donor], [f"{b}.1" for b in barcodes[:n]], "R" if i else "named")  # the same barcodes in each
        obs += [(f"{b}-1", donor, j, donors[donor]) for j, b in enumerate(barcodes[:n])]
    chosen = [obs[i] for i in sorted(RNG.choice(len(obs), labelled, replace=False))]
    kinds = RNG.choice(["SMC", "T cell", "Unknown"], labelled, p=[.6, .3, .1])
    table = pd.DataFrame({"celltype": kinds, "patient": [c[3] for c in chosen]}, index=[c[0] for c in chosen])
    sample = h5ad(AnnData(np.zeros((labelled, 2), np.float32), obs=table), folder)
    return X, chosen, table, {"GSE155468_RAW.tar": tar(files, "w"), "sample_aorta_data_updated.h5ad": sample}


def test_aorta(mirror, tmp_path):
    X, chosen, table, files = vessel(tmp_path)
    mirror.add("aorta", files)
    cells = datasets.load("aorta")
    expected = [(f"{donor}_{name.split('-')[0]}", X[donor][j], t) for (name, donor, j, _), t in zip(chosen, table["celltype"]) if t != "Unknown"]
    assert sorted(cells.obs_names) == sorted(e[0] for e in expected)
    for name, row, celltype in expected:
        np.testing.assert_array_equal(cells[name].X.toarray()[0], row)
        assert cells.obs.at[name, "cell_type"] == celltype
    assert set(cells.obs["condition"]) == {"control", "aneurysm"} and not list(tmp_path.rglob("escape*"))


def test_aorta_needs_a_person(mirror):
    wanted = r"needs files that only a person can get: sample_aorta_data_updated.h5ad \(with a browser from https://.*Put them in \S+ and ask again"
    with pytest.raises(DataError, match=wanted):
        datasets.load("aorta")


def test_heart(mirror):
    X = counts(20, 7)
    cells = [f"TWCM-{i}_ACGTACGTACGTACGT-1-0" for i in range(20)]
    disease, kinds = RNG.choice(["normal", "dilated cardiomyopathy"], 20), RNG.choice(["cardiac muscle cell", "fibroblast"], 20)
    meta = pd.DataFrame({"NAME": cells[::-1], "biosample_id": "B1", "donor_id": RNG.choice(["P1422", "P1510"], 20),
                         "disease__ontology_label": disease, "cell_type__ontology_label": kinds, "sex": "male"})
    kinds = pd.DataFrame([["TYPE", *["group"] * 5]], columns=meta.columns)
    base = "DCM_HCM_Expression_Matrix_"
    files = {base + "raw_counts_V1.mtx": mtx(X), base + "genes_V1.tsv": "".join(f"ENSG{i}\tG{i}\n" for i in range(7)).encode(),
             base + "barcodes_V1.tsv": "\n".join(cells).encode(), "DCM_HCM_MetaData_V1.txt": pd.concat([kinds, meta]).to_csv(sep="\t", index=False).encode()}
    with pytest.raises(DataError, match="heart needs files that only a person can get.*log in at"):
        datasets.load("heart")
    mirror.downloads("heart").mkdir(parents=True)
    for name, content in files.items():
        (mirror.downloads("heart") / name).write_bytes(content)
    heart = datasets.load("heart")
    np.testing.assert_array_equal(heart.X.toarray(), X)
    assert (heart.obs["cell_type"].astype(str) == meta.set_index("NAME").loc[cells, "cell_type__ontology_label"]).all()
    assert heart.uns["scinterp_source"]["condition"] == "disease__ontology_label"
    other = datasets.load("heart", label_key="disease__ontology_label")
    assert set(other.obs["cell_type"]) == {"normal", "dilated cardiomyopathy"}


# --- the registry


def test_two_builds_at_once(mirror):
    from concurrent.futures import ThreadPoolExecutor

    mirror.add("mouse-13k", atlas()[2], **SMALL)
    with ThreadPoolExecutor(3) as pool:
        shapes = {a.shape for a in pool.map(lambda _: datasets.load("mouse-13k"), range(3))}
    assert shapes == {(150, 30)} and len(mirror.site.requests) == 3


@pytest.mark.parametrize("name", [n for n, e in datasets.registry().items() if e.get("recipe", "").startswith("recipes.")])
def test_every_entry_has_its_recipe(name):
    entry = datasets.registry()[name]
    assert callable(datasets._recipe(name, entry))
    assert entry.get("status"), "it says how far it was tried"
    assert all(u.startswith("https://") for f in entry.get("files", []) for u in f.get("urls", []))
    assert all(f.get("urls") or f.get("hint") for f in entry.get("files", []))


@pytest.mark.parametrize("name, line", [("norman", "K562"), ("replogle_rpe1", "RPE1")])
def test_screens(mirror, tmp_path, name, line):
    told = ["ctrl"]*6 + ["KLF1+ctrl", "ctrl+KLF1", "CEBPA+KLF1"]*4
    X = np.log1p(counts(18, 5)*1.7).astype(np.float32)
    var = pd.DataFrame({"gene_name": ["KLF1", "CEBPA", "LYZ", "HBG1", "GATA1"]}, index=[f"ENSG{i:011}" for i in range(5)])
    obs = pd.DataFrame({"condition": pd.Categorical(told), "cell_type": "A549"}, index=[f"c{i}" for i in range(18)])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        z.writestr(f"{name}/perturb_processed.h5ad", h5ad(AnnData(sparse.csr_matrix(X), obs=obs, var=var), tmp_path))
        z.writestr(f"__MACOSX/{name}/._perturb_processed.h5ad", b"x")
        z.writestr(f"{name}/data_pyg/cell_graphs.pkl", b"never opened")
    mirror.add(name, {f"gears_{name}.zip": packed.getvalue()})
    cells = datasets.load(name)
    assert cells.obs["perturbation"].value_counts().to_dict() == {"KLF1": 8, "control": 6, "CEBPA+KLF1": 4}
    assert set(cells.obs["cell_line"]) == {line}, "the line of the paper, not the file's column"
    assert (cells.obs["cell_type"].astype(str) == cells.obs["perturbation"].astype(str)).all(), "what is told apart"
    assert list(cells.var_names) == list(var["gene_name"]) and cells.uns["screen"] == "gears"
    np.testing.assert_array_equal(cells.X.toarray(), X)
    assert cells.uns["scinterp_source"]["state"] == "" and "counts" not in cells.layers


def test_a_screen_that_is_cut_is_told(mirror, tmp_path):
    mirror.add("norman", {"gears_norman.zip": b"PK\x03\x04 not all of it"})
    with pytest.raises(DataError, match="gears_norman.zip is no readable zip"):
        datasets.load("norman")
    assert not mirror.built("norman").exists()
