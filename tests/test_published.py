"""Published sets are rebuilt from their R files cell for cell; R files written here by hand are read, and bad ones refused."""
import hashlib
import re
import struct
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import ROOT
from hypothesis import given, settings, strategies as st

from scinterp.cells import published
from scinterp.cells.datasets import registry
from scinterp.cells.splits import cells_sha256
from scinterp.core import DataError, InputError

SHARED = ROOT.parent / "shared" / "data"
ENTRIES = {name: entry for name, entry in registry().items() if entry.get("recipe", "").startswith("published.")}
SECONDS = {"human_multistudy": 30, "mouse_multistudy": 20, "human_pbmc_kang_ifnb": 10, "mouse_gut_mca": 10, "human_pbmc_kang_8donors_1287genes": 6}


def files_of(name):
    "Registry's files of a set and of its parts, by name"
    entry = ENTRIES[name]
    found = {f["name"]: f for f in entry.get("files", [])}
    for part in entry.get("parts", []):
        found |= files_of(part)
    return found


# ---- R files, written byte by byte as R's save() does


def i(*numbers):
    return struct.pack(f">{len(numbers)}i", *numbers)


NULL = i(254)
HAS_CLASS, HAS_ATTRIBUTES, HAS_TAG = 0x100, 0x200, 0x400


def char(text):
    return i(9 | 64 << 12, len(text)) + text.encode()


def pairs(items):
    "A pairlist: names with values"
    return b"".join(i(2 | HAS_TAG) + i(1) + char(name) + value for name, value in items.items()) + NULL


def vector(kind, body, n, **attributes):
    flags = (HAS_ATTRIBUTES if attributes else 0) | (HAS_CLASS if "class" in attributes else 0)
    return i(kind | flags, n) + body + (pairs(attributes) if attributes else b"")


def ints(values, **attributes):
    return vector(13, i(*values), len(values), **attributes)


def reals(values, **attributes):
    return vector(14, struct.pack(f">{len(values)}d", *values), len(values), **attributes)


def strings(values, **attributes):
    return vector(16, b"".join(map(char, values)), len(values), **attributes)


def rlist(values, **attributes):
    return vector(19, b"".join(values), len(values), **attributes)


def named(**values):
    return rlist(list(values.values()), names=strings(list(values)))


def s4(kind, **slots):
    return i(25 | HAS_CLASS | HAS_ATTRIBUTES) + pairs(slots | {"class": strings([kind], package=strings(["Matrix"]))})


def environment(**entries):
    return i(4, 0) + i(242) + NULL + rlist([pairs(entries)]) + NULL


def factor(values):
    levels = sorted(set(values))
    return ints([levels.index(v) + 1 for v in values], levels=strings(levels), **{"class": strings(["factor"])})


def frame(rows, **columns):
    return rlist(list(columns.values()), names=strings(list(columns)), **{"class": strings(["data.frame"]), "row.names": strings(rows)})


def dgc(dense, genes, cells):
    x = sp.csc_matrix(np.asarray(dense, dtype=float))
    return s4("dgCMatrix", i=ints(x.indices), p=ints(x.indptr), Dim=ints(x.shape), Dimnames=rlist([strings(genes), strings(cells)]), x=reals(x.data))


CLOSURE = i(3 | HAS_TAG) + i(253) + NULL + i(1) + char("x")
CALL = i(6) + i(1) + char("plot") + NULL
PROMISE = i(5 | HAS_TAG) + i(253) + NULL + i(1) + char("x")


def write(path, **objects):
    path.write_bytes(b"RDX2\nX\n" + i(2, 0x40000, 0x20300) + pairs(objects))
    return path


# ---- reading


def test_objects_of_packages_are_read(tmp_path):
    dense = np.array([[1, 0, 7], [0, 2, 0]])
    cells = s4("DFrame", rownames=strings(["a", "b", "c"]), nrows=ints([3]), listData=named(type=factor(["T", "B", "T"]), n=ints([5, 6, 7])))
    assays = environment(counts=dgc(dense, ["CD3D", "LYZ"], ["a", "b", "c"]))
    experiment = s4("SummarizedExperiment", colData=cells, assays=assays, empty=i(1) + char("\x01NULL\x01"))
    objects = published.read_rdata(write(tmp_path / "x.rda", se=experiment))
    x, cells, genes = published.sparse_matrix(published.inside(objects, "se", "assays", "counts"))
    assert np.array_equal(x.toarray(), dense.T) and list(cells) == ["a", "b", "c"] and list(genes) == ["CD3D", "LYZ"]
    table = published.data_frame(published.inside(objects, "se", "colData"))
    assert table.to_dict("list") == {"type": ["T", "B", "T"], "n": [5, 6, 7]} and list(table.index) == ["a", "b", "c"]


@pytest.mark.parametrize("code", [CLOSURE, CALL, PROMISE], ids=["function", "call", "promise"])
def test_code_beside_the_data_does_no_harm(tmp_path, code):
    "Seurat keeps the functions it was called with; in an environment, a list and as an object of the workspace"
    path = write(tmp_path / "x.rda", f=code, log=named(f=code, when=strings(["now"])), env=environment(f=code, n=ints([4])))
    objects = published.read_rdata(path)
    assert objects["f"] is None and list(objects["log"]["when"]) == ["now"] and list(published.inside(objects, "env", "n")) == [4]


@settings(max_examples=30, deadline=None, database=None)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_any_sparse_matrix_comes_back(tmp_path_factory, genes, cells, data):
    dense = np.array(data.draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 5, 1e6]), min_size=cells, max_size=cells), min_size=genes, max_size=genes)))
    path = write(tmp_path_factory.mktemp("r") / "x.rda", m=dgc(dense, [f"g{n}" for n in range(genes)], [f"c{n}" for n in range(cells)]))
    assert np.array_equal(published.sparse_matrix(published.read_rdata(path)["m"])[0].toarray(), dense.T)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = write(tmp_path / "x.rda", m=dgc([[1, 2], [0, 3]], ["A", "B"], ["a", "b"]), f=CLOSURE).read_bytes()
    path = tmp_path / "cut.rda"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(DataError, match="truncated"):
            published.read_rdata(path)
    path.write_bytes(whole)
    assert set(published.read_rdata(path)) == {"m", "f"}


def test_without_rdata_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(InputError, match=r"scinterp\[published\]"):
        published.read_rdata(tmp_path / "x.rda")


def test_rdata_is_imported_only_when_needed():
    code = "import sys, scinterp.cells.published; print('rdata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# ---- a recipe, on a small object like the published one

COUNTS = np.array([[3, 0, 1], [0, 9, 0], [1, 1, 40]])  # genes x cells


def seurat(path, counts=COUNTS, totals=None, labels=("Alpha", "Beta", "Ductal"), name="pancreas_sub"):
    totals = counts.sum(0) if totals is None else totals
    table = frame(["a", "b", "c"], nCount_RNA=reals(totals), SubCellType=factor(labels), CellType=factor(["Endocrine", "Endocrine", "Ductal"]),
                  Phase=strings(["G1", "S", "G1"]))
    data = dgc(np.log1p(counts / counts.sum(0) * 1e4), ["Gcg", "Ins2", "Krt19"], ["a", "b", "c"])
    write(path, **{name: s4("Seurat", assays=named(RNA=s4("Assay", data=data)), commands=named(run=CLOSURE), **{"meta.data": table})})
    return {"pancreas_sub.rda": path}


def test_a_recipe_gives_counts_names_and_labels(tmp_path):
    adata = published.mouse_pancreas_e15_bastidas(seurat(tmp_path / "x.rda"))
    assert np.array_equal(adata.X.toarray(), COUNTS.T) and adata.X.dtype == np.float32 and adata.X.format == "csr"
    assert list(adata.obs_names) == ["a", "b", "c"] and list(adata.var_names) == ["Gcg", "Ins2", "Krt19"]
    assert list(adata.obs.cell_type) == ["Alpha", "Beta", "Ductal"] and list(adata.obs.cell_type_broad) == ["alpha cell", "beta cell", "ductal cell"]
    assert set(adata.obs.species) == {"mouse"} and adata.uns["published"]["residual"] < 1e-9


@pytest.mark.parametrize("change, message", [
    (dict(totals=[5., 10., 41.]), "do not come back as counts"),
    (dict(labels=("Alpha", "Beta", "Gamma")), "the label 'Gamma'"),
    (dict(name="pancreas"), "no 'pancreas_sub' but pancreas"),
], ids=["totals", "label", "object"])
def test_a_recipe_refuses_another_version_of_the_file(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        published.mouse_pancreas_e15_bastidas(seurat(tmp_path / "x.rda", **change))


def test_a_recipe_says_which_file_it_needs():
    with pytest.raises(DataError, match="pancreas_sub.rda"):
        published.mouse_pancreas_e15_bastidas({"cluey.rda": "x"})


# ---- the registry and the table of labels


def test_registry_entries_are_complete():
    assert len(ENTRIES) == 13
    for name, entry in ENTRIES.items():
        assert {"title", "species", "tissue", "label", "state", "source", "licence", "citation", "cells_sha256"} <= set(entry), name
        assert entry["recipe"] == f"published.{name}" and callable(getattr(published, name)) and name in published.__all__
        assert entry["species"] == name.split("_")[0] and set(entry.get("parts", [])) <= set(ENTRIES) and files_of(name)
        for file in entry.get("files", []):
            address = r"https://(?:raw\.githubusercontent\.com/[^/]+/[^/]+|github\.com/[^/]+/[^/]+/raw)/([0-9a-f]{40})/.+"
            commits = {re.fullmatch(address, url)[1] for url in file["urls"]}
            assert len(file["urls"]) == 2 and len(commits) == 1 and re.fullmatch("[0-9a-f]{64}", file["sha256"]) and file["size"] > 0
    same = {}
    for file in [f for entry in ENTRIES.values() for f in entry.get("files", [])]:
        assert same.setdefault(file["name"], file) == file, "one name, one file"


def test_every_set_has_its_labels_named():
    table = published.published_labels()
    assert set(table.dataset) == {name for name, entry in ENTRIES.items() if "parts" not in entry}
    broad = table.groupby("dataset").cell_type_broad.apply(lambda names: (names != "").mean())
    assert set(broad) == {0., 1.}, "all types of a set have a coarser name, or none"


# ---- the real files


def differences(new, old):
    "What differs between a rebuilt set and the file that the tables were made on; sparse throughout"
    if new.shape != old.shape:
        return [f"shape {new.shape}, was {old.shape}"]
    found = [f"{axis} names" for axis in ("obs", "var") if list(getattr(new, f"{axis}_names")) != list(getattr(old, f"{axis}_names"))]
    delta = abs(new.X - old.X)
    found += [f"X by up to {delta.max()}"] if delta.nnz and delta.max() else []
    for axis in ("obs", "var"):
        a, b = getattr(new, axis).astype(str), getattr(old, axis).astype(str)
        found += [f"{axis}[{c!r}]" for c in sorted({*a, *b}) if c not in a or c not in b or (a[c].to_numpy() != b[c].to_numpy()).any()]
    return found


def test_differences_are_seen():
    old = ad.AnnData(sp.csr_matrix([[1., 0], [2, 3]]), obs=pd.DataFrame({"cell_type": ["B", "T"]}, index=["a", "b"]), var=pd.DataFrame(index=["X", "Y"]))
    assert differences(old.copy(), old) == []
    new = old.copy()
    new.X.data[2] = 4
    new.obs["cell_type"] = ["B", "NK"]
    new.var_names = ["X", "Z"]
    assert differences(new, old) == ["var names", "X by up to 1.0", "obs['cell_type']"]
    assert differences(old[:1], old) == ["shape (1, 2), was (2, 2)"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow(SECONDS[name])] if name in SECONDS else []) for name in ENTRIES])
def test_published_set_is_rebuilt_exactly(name):
    reference, files = SHARED / f"{name}.h5ad", {file: SHARED / "raw" / file for file in files_of(name)}
    if not all(p.is_file() for p in [reference, *files.values()]):
        pytest.skip(f"no shared data folder with {name}.h5ad and raw/{', '.join(files)}")
    for file, path in files.items():
        listed, content = files_of(name)[file], path.read_bytes()
        assert (listed["sha256"], listed["size"]) == (hashlib.sha256(content).hexdigest(), len(content)), file
    old, new, entry = ad.read_h5ad(reference), getattr(published, name)(files), ENTRIES[name]
    assert differences(new, old) == []
    assert cells_sha256(new.obs_names, new.obs[entry["label"]]) == entry["cells_sha256"]
    assert new.X.format == "csr" and new.X.dtype == np.float32
    keys = ("batch", "donor", "condition")
    assert {key for key in keys if key in new.obs and new.obs[key].nunique() > 1} == {key for key in keys if key in entry}
    if "parts" not in entry:
        assert set(new.obs.cell_type) == set(published.published_labels().query("dataset == @name").cell_type), "no label is named in vain"
