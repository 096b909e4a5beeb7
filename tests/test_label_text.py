"""Label texts are read as a person would read them, and scored as a loop would score them."""
import tomllib

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scinterp.cells.datasets import local_files
from scinterp.cells.nomenclature import cell_types
from scinterp.core import DataError, InputError, shipped
from scinterp.methods.label_text import LabelText, genes_in_text, learn_weights, marker_weights, pair_features, refined
from scinterp.run.unseen import described_cells, drawn_set, held_cells, unseen_config

GENES = ["CD3D", "CD3E", "MS4A1", "CD79A", "LYZ", "S100A8", "NKG7", "GNLY", "PPBP", "PF4", "HBB", "ALAS2", "ACTB", "COL1A1"]
TEXTS = {
    "T": "T cells carry CD3D and CD3E but lack MS4A1",
    "B": "B cells: MS4A1 with CD79A, and LYZ low",
    "mono": "Phagocytes rich in LYZ and S100A8",
    "NK": "Killers with NKG7 and GNLY, without CD3D",
    "platelet": "PPBP and PF4 are left over",
    "red": "HBB and ALAS2",
}


def made_cells(n=30, seed=0, genes=GENES, texts=TEXTS, species="human"):
    "Counts in which each type expresses what its text names"
    rng = np.random.default_rng(seed)
    marks = marker_weights(texts, genes, species)
    rate = np.full((len(texts), len(genes)), 0.3)
    rate[:, marks.columns] += 8 * (marks.plus > 0)
    types = np.repeat(list(texts), n)
    X = rng.poisson(rate[np.repeat(np.arange(len(texts)), n)]).astype(np.float32)
    X[:, genes.index(next(g for g in genes if g.upper() == "ACTB"))] += 20
    source = dict(state="counts", species=species)
    cells = AnnData(sparse.csr_matrix(X), pd.DataFrame({"cell_type": types}, index=[f"c{i}" for i in range(len(types))]), pd.DataFrame(index=genes))
    cells.uns["scinterp_source"] = source
    return cells


# ---- words


@pytest.mark.parametrize("text", ["IMPACT", "CAT", "SET", "T", "B", "MHC", "a SET of T and B cells", "THE CAT HAS AN IMPACT ON THE SET", "The CAT scan, MHC class II", "Impact. Cat. Set."])
def test_words_are_not_genes(text):
    assert genes_in_text(text, ["IMPACT", "CAT", "SET", "Impact", "Cat", "Set"]).empty


@pytest.mark.parametrize(
    "text, said",
    [
        ("SOD1, CAT and GPX1", "+SOD1 +CAT +GPX1"),
        ("CD14+ CD16- cells", "+CD14 -FCGR3A -FCGR3B"),
        ("CD3-CD56+ cells", "-CD3D -CD3E -CD3G +NCAM1"),
        ("they lack the strong CD14 signal", "-CD14"),
        ("no T cell receptor and are loaded with GNLY", "+GNLY"),
        ("CCR7 high, IL2RA and S100A4 low", "+CCR7 -IL2RA -S100A4"),
        ("lets CD34 and FLT3 fade", "-CD34 -FLT3"),
        ("not only CD3E but LCK", "+CD3E +LCK"),
        ("MYH11 stays low; RGS5 does not", "-MYH11 +RGS5"),
        ("SLC4A1-positive alpha and SLC26A4-negative beta", "+SLC4A1 -SLC26A4"),
        ("NKX6-1, HLA-DRA and (in mouse) Ly6d", "+NKX6-1 +HLA-DRA +Ly6d"),
        ("twice CD4 and again CD4", "+CD4"),
    ],
)
def test_genes_and_signs(text, said, nothing_at_hand):
    "The same with the bundled names alone, if the genes were measured"
    measured = ["SOD1", "CAT", "GPX1", "CD14", "GNLY", "CCR7", "S100A4", "CD34", "FLT3", "CD3E", "LCK", "MYH11", "RGS5", "SLC4A1", "SLC26A4", "NKX6-1", "HLA-DRA", "Ly6d", "CD4", "IL2RA"]
    told = genes_in_text(text, measured)
    assert " ".join(f"{'+' if n > 0 else '-'}{s}" for s, n in zip(told.symbol, told.sign)) == said


def test_every_bundled_text_names_genes():
    if not local_files():
        pytest.skip("the bundled names do not know all genes; SCINTERP_DATA has the rest")
    told = {name: genes_in_text(text) for name, text in cell_types().description.items()}
    assert min(len(t) for t in told.values()) >= 5
    against = {name: set(t.symbol[t.sign < 0]) for name, t in told.items()}
    assert against["Dendritic"] == {"CD14"} and against["megakaryocyte-erythroid progenitor"] == {"CD34", "FLT3"}
    assert sum(map(bool, against.values())) < 15 and not against["CD56+ NK"]


@given(st.text(max_size=80))
@settings(database=None, deadline=None, max_examples=100)
def test_any_text_is_read(text):
    told = genes_in_text(text, ["A1", "Bc2"])
    assert told.symbol.is_unique and set(told.sign) <= {1, -1}


# ---- scores


def test_scores_are_those_of_a_loop():
    cells = made_cells(5)
    X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
    D = X.toarray().astype(float)
    said = {"T": (["CD3D", "CD3E"], ["MS4A1"]), "B": (["MS4A1", "CD79A"], ["LYZ"]), "mono": (["LYZ", "S100A8"], []), "NK": (["NKG7", "GNLY"], ["CD3D"]),
            "platelet": (["PPBP", "PF4"], []), "red": (["HBB", "ALAS2"], [])}  # fmt: skip
    fit = pair_features(X, marker_weights(TEXTS, GENES, "human"))
    for i in range(len(D)):
        for j, (plus, minus) in enumerate(said.values()):
            z = {g: min(5, max(-3, (D[i, k] - D[:, k].mean()) / (D[:, k].std() + 0.5))) for k, g in enumerate(GENES)}
            mean = lambda values: sum(values) / max(len(values), 1)
            by_hand = [mean([z[g] for g in plus]), mean([D[i, GENES.index(g)] ** 0.5 for g in plus]), mean([z[g] for g in minus])]
            np.testing.assert_allclose(fit[i, j], by_hand, atol=1e-5)


def test_orthologs_share_the_weight_of_a_gene(tmp_path, monkeypatch):
    "One human gene with two mouse genes, by a made table of orthologs"
    (tmp_path / "text").mkdir()
    rows = [("LYZ", "Lyz1"), ("LYZ", "Lyz2"), ("CD3D", "Cd3d")]
    columns = ["human_symbol", "mouse_symbol", "hgnc_id", "mgi_id", "type"]
    table = pd.DataFrame([(h, m, "", "", "one2many" if h == "LYZ" else "one2one") for h, m in rows], columns=columns)
    table.to_csv(tmp_path / "text" / "orthologs_human_mouse.tsv.gz", sep="\t", index=False)
    monkeypatch.setenv("SCINTERP_DATA", str(tmp_path))
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path / "cache"))
    marks = marker_weights({"a": "LYZ and CD3D", "b": "MS4A1"}, ["Cd3d", "Lyz1", "Lyz2", "Ms4a1"], "mouse")
    np.testing.assert_array_equal(marks.plus, [[1, 0.5, 0.5, 0], [0, 0, 0, 1]])  # Ms4a1 by its name: no ortholog is known


def test_permuted_texts_keep_their_genes():
    marks = marker_weights(TEXTS, GENES, "human")
    dealt = marks.dealt(1)
    order = [next(j for j in range(6) if (marks.plus[j] == row).all()) for row in dealt.plus]
    assert sorted(order) == list(range(6)) and order != list(range(6))
    np.testing.assert_array_equal(dealt.minus, marks.minus[order])
    np.testing.assert_array_equal(np.sort(marks.random(2).plus, 1), np.sort(marks.plus, 1))


def test_types_never_seen_are_named_and_wrong_texts_name_them_wrong():
    cells = made_cells()
    y = cells.obs.cell_type.to_numpy(str)
    left = ["NK", "red"]
    seen = ~np.isin(y, left)
    method = LabelText({t: TEXTS[t] for t in TEXTS if t not in left}, fold_size=2).fit(cells[seen])
    right = method.predict(cells[~seen], types={t: TEXTS[t] for t in left}, only=True)
    wrong = method.predict(cells[~seen], types={"NK": TEXTS["red"], "red": TEXTS["NK"]}, only=True)
    assert (right.to_numpy() == y[~seen]).mean() > 0.95 and (wrong.to_numpy() == y[~seen]).mean() < 0.05
    both = method.predict(cells, types={t: TEXTS[t] for t in left}).to_numpy()
    assert (both == y)[~seen].mean() > 0.8 and (both == y)[seen].mean() > 0.8


def test_the_other_species_is_read_by_orthologs(nothing_at_hand):
    human, mouse = made_cells(), made_cells(genes=[g.capitalize() for g in GENES], species="mouse", seed=1)
    method = LabelText(TEXTS, general=False, fold_size=2).fit(human)
    assert (method.predict(mouse, types=TEXTS, only=True).to_numpy() == mouse.obs.cell_type).mean() > 0.9
    alone = LabelText(TEXTS, general=False, together=False, fold_size=2).fit(human)
    with pytest.raises(DataError, match="cannot be compared with the human cells of training"):
        alone.predict(mouse, types=TEXTS, only=True)


def test_the_same_run_twice_is_the_same():
    cells = made_cells()
    once, again = (LabelText(TEXTS, general=False, fold_size=2, seed=3).fit(cells).predict_proba(cells, types=TEXTS, only=True).to_numpy() for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_refining_never_breaks_probabilities():
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(rng.poisson(1.0, (40, 6)).astype(np.float32))
    P = rng.dirichlet([1, 1, 1], 40)
    np.testing.assert_allclose(refined(X, P).sum(1), 1, atol=1e-6)
    one = np.tile([1.0, 0.0, 0.0], (40, 1))
    np.testing.assert_array_equal(refined(X, one), one)  # nothing to tell apart


# ---- bad input


def test_bad_input_is_named():
    cells = made_cells(4)
    with pytest.raises(DataError, match="names no gene that was measured in these human cells"):
        marker_weights({"x": "a CAT in a SET"}, GENES, "human")
    with pytest.raises(DataError, match="species must be one of human, mouse"):
        marker_weights(TEXTS, GENES, "rat")
    with pytest.raises(InputError, match="must be a string"):
        genes_in_text(3)
    with pytest.raises(DataError, match="too few to learn reading from"):
        learn_weights(cells.X, cells.obs.cell_type.to_numpy(str), marker_weights(TEXTS, GENES, "human").of(["T", "B", "NK"]))
    method = LabelText(TEXTS, general=False, fold_size=2).fit(cells)
    for types, only, says in ((["no such cell"], True, "no text is known for 'no such cell'"), (["T"], False, "was seen in training"), ("T", True, "must be a list"), ({"T": "CD3D"}, False, "was seen in training"),
                              ({"a": "CD3D"}, True, "at least two types"), ({"a": "CD3D", "b": "nothing"}, True, "names no gene"), ({"a": "CD3D"}, False, "general=True")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            method.predict(cells, types=types, only=only)


# ---- the configuration


def test_the_drawn_types_follow_from_the_rule():
    config = unseen_config()
    if "mouse_multistudy" not in local_files():
        pytest.skip("needs the real cells of SCINTERP_DATA")
    for which in (s for s in config["sets"] if s["name"].startswith(("kang", "gut", "marrow"))):
        counts = described_cells(which["dataset"], config).obs.cell_type.value_counts()
        assert drawn_set(which, counts, config) == which["left_out"]


def test_the_configuration_is_whole():
    config = tomllib.loads(shipped("configs", "unseen_types.toml").read_text())
    assert sum(not s.get("again") for s in config["sets"]) == 5 and all(5 <= len(set(s["left_out"])) == len(s["left_out"]) <= 8 for s in config["sets"])
    for which in config["sets"]:
        assert set(which["left_out"]) <= set(config["labels"][which["dataset"]].values()) <= set(config["sha256"])
        for part in (s for s in config["sets"] if s["name"] in which["parts"]):
            assert not set(part["left_out"]) & set(which["left_out"])
    assert config["profiles"]["cpu"]["permutations"] >= 20 and len(config["profiles"]["cpu"]["seeds"]) >= 5


def test_held_cells_leave_some_of_each_type():
    y = np.repeat(list("abc"), [1, 2, 40])
    held = held_cells(y, 0.25, 0)
    assert [int(held[y == t].sum()) for t in "abc"] == [0, 1, 10]
