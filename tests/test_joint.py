"""Joint sets: pairs that a person would draw, every cell accounted for, and a test species that nothing was chosen on."""
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from scinterp.cells import datasets, joint, two_species
from scinterp.cells.splits import IMBALANCE, PARTS, make_split
from scinterp.core import DataError
from scinterp.methods.baselines import LogisticHVG, highly_variable
from scinterp.methods.genept import GenePT
from scinterp.text.gene_tables import GeneTable

REAL = ROOT.parent / "shared" / "data"
many = settings(max_examples=100, database=None, deadline=None)
needs_real = pytest.mark.skipif(not (REAL / "human_multistudy.h5ad").is_file(), reason="the shared data are not here")

# By hand, from the Alliance's pages: ten human genes and the mouse gene each is one-to-one with ('' where it is not, or has none).
PAIRS = dict(CD3D="Cd3d", MS4A1="Ms4a1", CD79A="Cd79a", NKG7="Nkg7", PPBP="Ppbp", IL32="", GNLY="", LYZ="", TP53="Trp53", PTPRC="Ptprc")
JOINT = ["immune_human_mouse", "multistudy_human_mouse"]

ORTHOLOGS = [("CD79A", "Cd79a"), ("CD3D", "Cd3d"), ("NKG7", "Nkg7"), ("LYZ", "Lyz1"), ("LYZ", "Lyz2")]
REGISTRY = """
[human_part]
title = "Human"
species = "human"
label = "cell_type"
state = "counts"
[mouse_part]
title = "Mouse"
species = "mouse"
label = "cell_type"
state = "counts"
[ours]
title = "Both; genes: one-to-one orthologs"
species = "human"
label = "cell_type"
state = "counts"
min_cells = 3
[ours.join.human_part]
species = "human"
[ours.join.human_part.labels]
"B cell" = "B"
"T cell" = "T"
[ours.join.mouse_part]
species = "mouse"
[ours.join.mouse_part.labels]
"B" = "B"
"T" = "T"
"""


def made(genes, labels, seed):
    rng = np.random.default_rng(seed)
    X = rng.poisson(1.0, (len(labels), len(genes))).astype(np.float32)
    for i, label in enumerate(labels):
        X[i, 0 if label.startswith("B") else 1] += 6  # a marker each
    X[:, -1] += 1  # no cell is empty
    return AnnData(sparse.csr_matrix(X), obs=pd.DataFrame({"cell_type": labels}, index=[f"c{i}" for i in range(len(labels))]), var=pd.DataFrame(index=genes))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    lines = ["human_symbol\tmouse_symbol\thgnc_id\tmgi_id", *(f"{h}\t{m}\t\t" for h, m in ORTHOLOGS)]
    (tmp_path / "text" / "orthologs_human_mouse.tsv.gz").write_text("\n".join(lines) + "\n")
    made(["CD79A", "CD3D", "NKG7", "GNLY", "LYZ"], ["B cell", "T cell", "odd"] * 15, 0).write_h5ad(tmp_path / "human_part.h5ad")
    made(["Cd79a", "Cd3d", "Nkg7", "Lyz2", "Ly6c2"], ["B", "T"] * 15, 1).write_h5ad(tmp_path / "mouse_part.h5ad")
    (tmp_path / "registry.toml").write_text(REGISTRY)
    for key, value in dict(SCINTERP_DATA=tmp_path, SCINTERP_REGISTRY=tmp_path / "registry.toml", SCINTERP_CACHE=tmp_path / "cache", SCINTERP_OFFLINE="1").items():
        monkeypatch.setenv(key, str(value))
    return tmp_path


@many
@given(st.lists(st.text(min_size=1)), st.sampled_from(["human", "mouse"]))
def test_names_go_there_and_back(genes, species):
    told = two_species.parse_names(two_species.own_names(genes, species))
    assert told.gene.tolist() == genes and set(told.species) <= {species}


@many
@given(st.text().filter(lambda s: not s.startswith(("human:", "mouse:"))))
def test_a_name_without_species_is_refused(name):
    with pytest.raises(DataError, match="does not say whose gene"):
        two_species.parse_names([name])


@needs_real
def test_ten_pairs_by_hand(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    human, mouse = list(PAIRS), [m for m in PAIRS.values() if m]
    assert dict(zip(human, two_species.pair_columns(human, "human", "mouse"))) == PAIRS
    assert two_species.pair_columns(mouse, "mouse", "mouse").tolist() == mouse
    back = {m: h for h, m in PAIRS.items() if m}
    assert dict(zip(mouse, two_species.pair_columns(mouse, "mouse", "human"))) == back
    assert (two_species.pair_columns(["Lyz1", "Lyz2", "CD3D"], "mouse", "human") == "").all(), "doubled in mouse; written as in human"


def test_without_a_table_orthologs_are_refused_and_own_genes_are_not(folder):
    (folder / "text" / "orthologs_human_mouse.tsv.gz").unlink()
    with pytest.raises(DataError, match="scinterp fetch genes"):
        datasets.load("ours")
    assert datasets.load("ours_own").n_vars == 10


@pytest.mark.parametrize("name", ["ours", "ours_own"])
def test_every_cell_and_count_is_accounted_for(folder, name):
    cells = datasets.load(name)
    told = cells.uns["scinterp_joint"]["labels"]
    assert told.groupby("part").cells.sum().to_dict() == {"human_part": 45, "mouse_part": 30}
    assert told[told.fate == "kept"].cells.sum() == cells.n_obs == 60
    assert told[told.fate == "not mapped"][["source_label", "cells"]].values.tolist() == [["odd", 15]]
    human = datasets.load("human_part")
    for gene in ("CD79A", "NKG7"):
        column = gene if name == "ours" else f"human:{gene}"
        for cell in ("c0", "c30", "c40"):
            assert cells[f"human_part:{cell}", column].X.toarray() == human[cell, gene].X.toarray()
    assert sparse.issparse(cells.X) and (cells.X != cells.layers["counts"]).nnz == 0


def test_the_same_set_twice_is_the_same_and_survives_a_file(folder):
    first, second = datasets.load("ours_own"), datasets.load("ours_own")
    assert (first.X != second.X).nnz == 0 and first.obs.equals(second.obs) and first.var.equals(second.var)
    first.write_h5ad(folder / "out.h5ad")
    again = datasets.load(folder / "out.h5ad")
    assert again.uns["scinterp_joint"]["labels"].cells.tolist() == first.uns["scinterp_joint"]["labels"].cells.tolist()


def test_a_type_of_too_few_cells_is_left_out_and_counted(folder):
    entry = datasets.registry()["ours"] | dict(min_cells=15, types_kept="shared")
    made(["Cd79a", "Cd3d", "Nkg7"], ["B"] * 20 + ["T"] * 4 + ["NK"] * 15, 2).write_h5ad(folder / "mouse_part.h5ad")
    entry["join"] = dict(human_part=entry["join"]["human_part"] | dict(labels={"B cell": "B", "T cell": "T", "odd": "NK"}),
                         mouse_part=dict(species="mouse", labels=dict(B="B", T="T", NK="NK")))
    cells = joint.join(entry)
    told = cells.uns["scinterp_joint"]["labels"]
    assert set(cells.obs.cell_type) == {"B", "NK"} and told[told.fate == "too few"].cells.tolist() == [15, 4]


@pytest.mark.parametrize("change, says", [
    (dict(genes="names"), "genes must be"), (dict(types_kept="few"), "types_kept must be"), (dict(min_cells=1000), "no type has 1000 cells"),
    (dict(join={"no_such": dict(species="human")}), "no_such is not a named dataset"),
    (dict(join={"human_part": dict(species="human", labels={"b cell": "B"})}), "has no cell called 'b cell'"),
    (dict(join={"human_part": dict(species="human", labels={})}), "none of the labels of human_part is mapped"),
    (dict(join={"human_part": dict(species="human", where={"donor": ["d1"]}, labels={"B cell": "B"})}), "has no column 'donor'"),
])
def test_what_is_written_wrong_is_said_in_one_sentence(folder, change, says):
    with pytest.raises(DataError, match=says) as told:
        joint.join(datasets.registry()["ours"] | change)
    assert str(told.value).count("\n") == 0


def test_an_absent_part_is_named(folder):
    (folder / "mouse_part.h5ad").unlink()
    with pytest.raises(DataError, match="mouse_part"):
        datasets.load("ours")


def test_a_part_without_counts_is_refused(folder):
    text = REGISTRY.replace('title = "Mouse"\nspecies = "mouse"\nlabel = "cell_type"\nstate = "counts"', 'title = "Mouse"\nspecies = "mouse"\nlabel = "cell_type"\nstate = ""')
    (folder / "registry.toml").write_text(text)
    with pytest.raises(DataError, match="mouse_part has no counts"):
        datasets.load("ours")


sets = st.lists(st.tuples(st.sampled_from(["human", "mouse"]), st.sampled_from(["a", "b", "c"])), min_size=12, max_size=70)


@many
@given(sets, st.integers(0, 7))
def test_validation_is_never_of_the_species_that_is_asked(rows, seed):
    species, labels = map(np.array, zip(*rows))
    try:
        split = make_split([f"c{i * 31 % 997}" for i in range(len(rows))], labels, "species", seed, species)
    except DataError:
        assume(False)
    asked = set(species[np.r_[split.test, split.novel]])
    assert asked == {"mouse" if seed % 2 == 0 else "human"} and not asked & set(species[np.r_[split.train, split.val]])
    assert set(labels[split.test]) <= set(labels[split.train])


@many
@given(sets, st.sampled_from(["human", "mouse"]), st.integers(1, 6), st.integers(0, 5))
def test_few_cells_of_one_species(rows, few, k, seed):
    species, labels = map(np.array, zip(*rows))
    ids = [f"c{i * 31 % 997}" for i in range(len(rows))]
    try:
        none, some, more, alone = (make_split(ids, labels, kind, seed, species) for kind in (f"few-{few}-0", f"few-{few}-{k}", f"few-{few}-{k + 2}", f"only-{few}-{k}"))
    except DataError:
        assume(False)
    mine = species == few
    for split in (none, some, more, alone):
        assert sorted(np.concatenate([getattr(split, part) for part in PARTS])) == list(range(len(rows)))
        assert np.array_equal(split.test, none.test) and mine[split.test].all() and not mine[split.val].any()
        assert set(labels[split.test]) <= set(labels[split.train])
    assert not mine[none.train].any() and mine[alone.train].all()
    assert np.array_equal(some.val, none.val) and set(some.train) <= set(more.train)
    assert set(alone.train) == set(some.train[mine[some.train]]) and max(np.unique(labels[alone.train], return_counts=True)[1]) <= k


def test_the_kind_is_refused_where_it_means_nothing():
    ids, labels, species = [f"c{i}" for i in range(20)], ["a", "b"] * 10, ["human"] * 10 + ["mouse"] * 10
    assert IMBALANCE.fullmatch("few-mouse-5") and not IMBALANCE.fullmatch("few-mouse")
    for kind, says in (("few-rat-5", "needs cells of rat"), ("only-mouse-0", "no cell to train on"), ("few-mouse", "no split kind")):
        with pytest.raises(DataError, match=says):
            make_split(ids, labels, kind, 0, species)


def test_nothing_is_chosen_on_the_species_that_is_asked(folder):
    "Other test cells, the same genes, the same model"
    cells = datasets.load("ours")
    split = datasets.split(cells, "species", 0)
    changed = cells.copy()
    X = changed.X.tolil()
    X[split.test] = np.random.default_rng(0).poisson(20, (len(split.test), cells.n_vars))
    changed.X = changed.layers["counts"] = X.tocsr().astype(np.float32)
    before, after = (LogisticHVG(n_genes=2).fit(c[split.train], validation=c[split.val]) for c in (cells, changed))
    steps = [m.model_.steps for m in (before, after)]
    assert np.array_equal(steps[0][0][1].columns_, steps[1][0][1].columns_) and np.allclose(steps[0][-1][1].coef_, steps[1][-1][1].coef_)
    assert np.array_equal(highly_variable(cells[split.train].X, 2), highly_variable(changed[split.train].X, 2))


def test_own_genes_carry_over_by_text_alone(folder):
    "Logistic regression sees no gene of the other species, and says the same of every cell; a table in which orthologs are alike knows the markers"
    cells = datasets.load("ours_own")
    split = datasets.split(cells, "species", 0)
    told = LogisticHVG().fit(cells[split.train], validation=cells[split.val]).predict_proba(cells[split.test])
    assert np.allclose(told, told.iloc[0])
    whose = two_species.parse_names(cells.var_names)
    at = {g: i for i, g in enumerate(["CD79A", "CD3D", "NKG7", "GNLY", "LYZ", "LYZ2", "LY6C2"])}
    vectors = np.eye(7, dtype=np.float32)[[at[g.upper()] for g in whose.gene]]
    table = GeneTable.from_vectors(vectors, cells.var_names, "human+mouse", "orthologs alike")
    right = cells.obs.cell_type.astype(str).to_numpy()[split.test]
    score = lambda t: (GenePT(t, head="knn").fit(cells[split.train], validation=cells[split.val]).predict(cells[split.test]).to_numpy() == right).mean()
    assert score(table) > 0.9 > 0.75 > np.mean([score(table.permuted(s)) for s in range(8)])


def test_orthologs_carry_over_without_text(folder):
    cells = datasets.load("ours")
    split = datasets.split(cells, "species", 1)
    counts, y = cells.X.toarray(), cells.obs.cell_type.to_numpy(str)
    X = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    plain = LogisticRegression(max_iter=500).fit(X[split.train], y[split.train]).score(X[split.test], y[split.test])
    ours = (LogisticHVG().fit(cells[split.train], validation=cells[split.val]).predict(cells[split.test]).to_numpy() == y[split.test]).mean()
    assert ours > 0.9 and abs(ours - plain) < 0.1


@needs_real
@pytest.mark.parametrize("name", JOINT)
def test_the_sets_that_ship_are_what_their_entry_says(monkeypatch, name):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    entry, cells = datasets.registry()[name], datasets.load(name)
    assert (cells.n_obs, cells.obs.cell_type.nunique()) == (entry["cells"], entry["types"]) and sparse.issparse(cells.X)
    counts = pd.crosstab(cells.obs.cell_type, cells.obs.species)
    assert (counts.min(axis=1) if entry["types_kept"] == "shared" else counts.max(axis=1)).min() >= entry["min_cells"]
    told = cells.uns["scinterp_joint"]
    for part in entry["join"]:
        assert told["labels"][told["labels"].part == part].cells.sum() == datasets.registry()[part]["cells"]
    assert (told["parts"].genes == told["parts"].without_column + told["parts"].added + told["parts"]["columns"]).all()
    for seed in range(10):
        split, asked = datasets.split(cells, "species", seed), ["mouse", "human"][seed % 2]
        assert split.sha256 == make_split(cells.obs_names, cells.obs.cell_type, "species", seed, cells.obs.species).sha256
        assert set(cells.obs.species.iloc[split.test]) == {asked} and asked not in set(cells.obs.species.iloc[np.r_[split.val, split.train]])


@needs_real
def test_s5b_has_the_cells_of_the_baselines(monkeypatch):
    "8,713 human cells of eight types; 600 mouse cells of three of them"
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    cells = datasets.load(JOINT[0])
    split = datasets.split(cells, "species", 0)
    assert len(split.train) + len(split.val) == 8713 and cells.obs.cell_type.iloc[split.train].nunique() == 8
    assert cells.obs.cell_type.iloc[split.test].astype(str).value_counts().to_dict() == {"B cell": 200, "T cell": 200, "NK cell": 200}
