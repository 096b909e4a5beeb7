"""The texts that ship: complete, honest about cell types, and shaped by no template."""
import re
from collections import Counter

import pytest

from scinterp.cells.datasets import load
from scinterp.cells.identifiers import bundled_genes, match_genes
from scinterp.text.descriptions import cell_types

# words that cannot be used of a gene without naming a kind of cell
CELL_WORDS = re.compile(
    r"\b(?:[BT][ -]cells?|[BT] lymphocytes?|NK cells?|natural killer|monocytes?|macrophages?|microglia|neutrophils?|basophils?|eosinophils?|mast cells?|dendritic cells?|"
    r"platelets?|megakaryocytes?|erythrocytes?|fibroblasts?|keratinocytes?|hepatocytes?|enterocytes?|podocytes?|astrocytes?|oligodendrocytes?|neurons?|cardiomyocytes?|"
    r"adipocytes?|melanocytes?|oocytes?|spermatocytes?|trophoblasts?|plasma cells?|stem cells?)\b", re.I)
GENES = bundled_genes()


def test_every_gene_of_the_demo_is_described():
    rows = match_genes(load("demo").var_names)
    assert (rows.symbol != "").all()
    assert GENES.loc[rows.symbol, "description"].str.len().min() > 40


def test_markers_of_many_tissues_are_there():
    markers = "CD3D MS4A1 NKG7 LYZ FCER1A PPBP HBA1 PECAM1 COL1A1 EPCAM KRT14 ALB INS GCG SST SFTPC SCGB1A1 NPHS1 SNAP25 GAD1 MBP GFAP AQP4 TNNT2 MYH6 MYOD1 POU5F1 NANOG SOX2 DDX4 TBXT SOX17"
    assert set(markers.split()) <= set(GENES.index)
    assert len(GENES) > 765 + 300


def test_texts_that_name_a_cell_type_say_so():
    names = (GENES.name + ". " + GENES.description).str.contains(CELL_WORDS.pattern, flags=re.I)
    assert GENES.index[names & (GENES.mentions_cell_type == 0)].tolist() == []
    assert .2 < GENES.mentions_cell_type.mean() < .9, "a flag that is always or never set controls nothing"


@pytest.mark.parametrize("table", [GENES, cell_types()], ids=["genes", "cell types"])
def test_no_sentence_template(table):
    openings = Counter()
    for text in table.description:
        openings.update({" ".join(s.lower().split()[:3]) for s in re.split(r"(?<=[.!?])\s+", text)})
    worst, count = openings.most_common(1)[0]
    assert count <= max(2, .02 * len(table)), worst


def test_no_text_is_shared_or_borrowed():
    assert not GENES.description.duplicated().any()
    phrases = "this gene encodes|provided by refseq|alternatively spliced transcript variants|belongs to the family of|involved in several processes"
    assert GENES.index[GENES.description.str.contains(phrases, case=False)].tolist() == []


def test_cell_types_name_their_markers():
    symbol = re.compile(r"\b(?:[A-Z][A-Z0-9]+(?:-[A-Z0-9]+)*|[A-Z][a-z]+[0-9]+[a-z]*[0-9]*)\b")  # HLA-DRA, Ly6c2
    named = cell_types().description.map(lambda text: len(set(symbol.findall(text))))
    assert named.index[named < 4].tolist() == []
    known = set(GENES.index) | {a for names in GENES.aliases for a in names.split("|")}
    described = cell_types().description.map(lambda text: len(known & set(symbol.findall(text))))
    assert (described >= 1).all(), "each type names a gene whose own text ships"
