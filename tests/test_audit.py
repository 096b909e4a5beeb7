"""The label audit finds what it should, and leaves ordinary labels alone."""
import math
from collections import Counter

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scinterp.cells.audit import audit, label_words, near_duplicates, not_a_cell_type, ontology_id
from scinterp.core import DataError

SHARED = ROOT.parent / "shared" / "data"
FLAGGED = {  # every label of the real sets that the words give away, and no other
    "human_multistudy": {"B lymphoblast line CRL-2339": "cell line", "breast carcinoma line CRL-2338": "cell line",
                         "chronic myeloid leukaemia line K562": "cell line",
                         "promyelocytic leukaemia line HL60": "cell line", "fetal cortex GW16": "tissue or organ", "fetal cortex GW21": "tissue or organ",
                         "fetal cortex GW21+3": "tissue or organ", "T and NK cells (unresolved)": "unresolved"},
    "human_pancreas_tumour_pdacA": {"Cancer clone A": "disease", "Cancer clone B": "disease"},
    "mouse_multistudy": {}, "human_embryo_yan": {}, "human_pbmc_kang_ifnb": {}, "human_pbmc_kang_8donors_1287genes": {},
    "human_pbmc_zheng_sorted7": {}, "mouse_gut_mca": {},
    "mouse_lung_zilionis_healthy_tumour": {}, "mouse_marrow_paul15": {}, "mouse_oligodendrocyte_marques": {}, "mouse_pancreas_e15_bastidas": {},
}


def real(name):
    "A real set, backed, or a skip"
    if not (SHARED / f"{name}.h5ad").is_file():
        pytest.skip(f"{name}.h5ad is not here")
    return ad.read_h5ad(SHARED / f"{name}.h5ad", backed="r")


def cells(labels, **columns):
    "Cells with these labels, and random counts"
    X = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (len(labels), 12)).astype(np.float32) + np.eye(len(labels), 12, dtype=np.float32))
    return ad.AnnData(X, obs=pd.DataFrame({"cell_type": labels, **columns}, index=[f"c{i}" for i in range(len(labels))]))


@pytest.mark.parametrize("name", FLAGGED)
def test_what_is_flagged_in_the_real_sets(name):
    labels = sorted(set(real(name).obs.cell_type))
    assert {x: why for x in labels if (why := not_a_cell_type(x))} == FLAGGED[name]


def test_no_term_of_the_cell_ontology_is_flagged():
    path = SHARED / "text" / "cl_terms.tsv.gz"
    if not path.is_file():
        pytest.skip("cl_terms.tsv.gz is not here")
    terms = pd.read_csv(path, sep="\t", keep_default_na=False)
    assert len(terms) > 3000
    assert {x: why for x in terms.label if (why := not_a_cell_type(x))} == {x: "unresolved" for x in ("cell", "native cell") if x in set(terms.label)}
    synonyms = [s for row in terms.synonyms_exact for s in row.split("|") if s]
    flagged = {x: why for x in synonyms if (why := not_a_cell_type(x))}
    assert len(flagged) <= 6 < 0.003 * len(synonyms), flagged


def test_ontology_ids_agree_with_the_ontology():
    "Most names of terms that are known here have their own id; the others that of a wider or narrower type, as the notebook says"
    path = SHARED / "text" / "cl_terms.tsv.gz"
    if not path.is_file():
        pytest.skip("cl_terms.tsv.gz is not here")
    terms = pd.read_csv(path, sep="\t", keep_default_na=False)
    found = [(x, cl, mine) for x, cl in zip(terms.label, terms.id) if (mine := ontology_id(x)) and cl not in mine.split("|")]
    known = sum(bool(ontology_id(x)) for x in terms.label)
    assert (known, len(found)) == (136, 33), found


@pytest.mark.parametrize("short, long, why", [
    ("Treg", "regulatory T cell", "same words"), ("CD14 Mono", "CD14+ monocyte", "same words"), ("γδ T cell", "gamma-delta T cell", "same words"),
    ("gdT", "γδ T cells", "same words"), ("αβ T cell", "alpha-beta T cell", "same words"), ("RBC", "erythrocyte", "same ontology term"),
    ("RBCs", "red blood cell", "same words"), ("pDC", "plasmacytoid dendritic cell", "same words"), ("NK", "natural killer cell", "same ontology term"),
    ("OPC", "oligodendrocyte precursor cell", "same ontology term"),
])
def test_abbreviations_are_near_duplicates(short, long, why):
    assert near_duplicates([short, long]).why.tolist() == near_duplicates([long, short]).why.tolist() == [why]


@pytest.mark.parametrize("labels", [("Treg", "CD4 T cell"), ("γδ T cell", "αβ T cell"), ("CD14 Mono", "CD16 Mono"), ("CD4 TCM", "CD4 TEM"), ("RBC", "WBC"), ("β cell", "δ cell")])
def test_abbreviations_of_other_types_are_not(labels):
    assert near_duplicates(labels).empty


@pytest.mark.parametrize("label, why", [("Mixed mesoderm", ""), ("mixed", "unresolved"), ("Mixed population", "unresolved"), ("cell", "unresolved"), ("Cells", "unresolved"),
                                        ("native cell", "unresolved"), ("stem cell", ""), ("neural lineage cell", "")])
def test_labels_that_say_nothing(label, why):
    assert not_a_cell_type(label) == why


def test_composites_are_confounded():
    human = real("human_multistudy")
    table = audit(human, study_key="dataset")
    assert [table.attrs[k] for k in ("n_types", "n_enough", "n_confounded")] == [50, 44, 33]
    counts = pd.crosstab(human.obs.cell_type, human.obs.dataset)
    assert table.set_index("label").n_studies.to_dict() == (counts > 0).sum(axis=1).to_dict()
    assert audit(real("mouse_multistudy"), study_key="dataset").attrs["n_confounded"] == 44


def test_unknown_donors_are_not_donors():
    ifnb = real("human_pbmc_kang_ifnb")
    table = audit(ifnb, donor_key="donor").set_index("label")
    known = ifnb.obs[ifnb.obs.donor.astype(str) != "unknown"]
    assert table.n_donors.to_dict() == known.groupby("cell_type", observed=False).donor.nunique().to_dict()
    assert table.n_donors.max() == 8


labels = st.lists(st.sampled_from(["B cell", "T cell", "mast cell", "7", "NA cell"]), min_size=1, max_size=40)


@settings(max_examples=60, database=None, deadline=None)
@given(labels, st.integers(1, 4), st.integers(0, 100))
def test_numbers_against_plain_arithmetic(types, n_studies, seed):
    studies = np.random.default_rng(seed).integers(n_studies, size=len(types)).astype(str)
    table = audit(cells(types, study=studies), study_key="study", min_cells=2)
    count, at = Counter(types), Counter(zip(types, studies))
    assert dict(zip(table.label, table.n)) == count and math.isclose(table.share.sum(), 1)
    assert dict(zip(table.label, table.n_studies)) == Counter(t for t, _ in at)
    entropy = -sum(n / len(types) * math.log(n / len(types)) for n in count.values())
    assert math.isclose(table.attrs["effective_types"], math.exp(entropy)) and table.attrs["imbalance"] == max(count.values()) / min(count.values())
    per_study = Counter(studies)
    if min(len(count), len(per_study)) > 1:
        chi = sum((at[t, s] - count[t] * m / len(types)) ** 2 / (count[t] * m / len(types)) for t in count for s, m in per_study.items())
        assert math.isclose(table.attrs["cramers_v"], math.sqrt(chi / len(types) / (min(len(count), len(per_study)) - 1)), abs_tol=1e-9)
    else:
        assert math.isnan(table.attrs["cramers_v"])
    alone = [t for t in count if count[t] >= 2 and len(per_study) > 1 and sum(at[t, s] > 0 for s in per_study) == 1]
    assert table.attrs["n_confounded"] == len(alone)


@settings(max_examples=100, database=None, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_label(a, b):
    assert isinstance(not_a_cell_type(a), str) and isinstance(ontology_id(a), str) and label_words(a) == label_words(f" {a} ")
    pairs = near_duplicates([a, b, a])
    assert len(pairs) <= 1 and pairs.equals(near_duplicates([b, a]))


def test_labels_that_are_missing_are_counted_and_left_out():
    table = audit(cells(["B", "B", None, "T"]), expression=True)
    assert table.n.sum() == 3 and table.attrs["n_unlabelled"] == 1
    with pytest.raises(DataError, match="no cell has a 'cell_type'"):
        audit(cells([None, None]))


def test_expression_needs_a_state_that_is_known():
    strange = cells(["B", "T"])
    strange.X = strange.X * 0.37 - 0.1 * sparse.csr_matrix(np.ones(strange.shape))
    with pytest.raises(DataError, match="the state of X is unknown"):
        audit(strange, expression=True)
    assert len(audit(strange)) == 2, "names and numbers need no expression"


def test_the_matrix_is_left_as_it_is():
    a = cells(["B", "T", "B"])
    before = a.X.copy()
    audit(a, expression=True)
    assert (a.X != before).nnz == 0 and list(a.obs) == ["cell_type"] and not a.uns
