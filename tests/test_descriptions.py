"""Gene summaries as NCBI serves them, whole and broken; and descriptions that say what they are made of."""
import gzip
import json
import socket
import threading

import loopback
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.cells import nomenclature as nm
from scinterp.cells.audit import label_words
from scinterp.cells.identifiers import match_genes, one_ortholog
from scinterp.core import DataError, InputError, digest, file_sha256
from scinterp.text import ncbi
from scinterp.text.descriptions import TEMPLATES, cell_types, coverage, describe, describe_terms, names_cell_type

REAL = ROOT.parent / "shared" / "data"
needs_real = pytest.mark.skipif(not (REAL / "text" / "mouse_gene_info.tsv.gz").is_file(), reason="the folder of real tables is not here")
DEMO_TEXT = "7e7a168ce0d455f813cfd05a92de59eb9f9b4892874a7dc893109d08aaf7d3c6"  # in data/results/demo/run.json

HEADER = "#tax_id\tGeneID\tSource\tSummary"
ALLIANCE = "Alliance of Genome Resources"
ROWS = [
    ("7227", "30970", ALLIANCE, "A gene of the fly. [provided by Alliance of Genome Resources, Apr 2022]"),
    ("9606", "915", ALLIANCE, "Enables binding. [provided by Alliance of Genome Resources, Apr 2022]"),
    ("9606", "915", "RefSeq", "Part of the T-cell receptor. [provided by RefSeq, Feb 2009]."),
    ("9606", "989", "RefSeq", 'A "septin" of 3\u2032 ends. [provided by RefSeq, Jul 2008]. Sequence Note: none.'),
    ("9606", "777777", "RefSeq", "Of a gene that the names do not have."),
    ("741158", "8923216", "RefSeq", "Of Denisovans."),
    ("10090", "12500", ALLIANCE, "Acts in thymocytes. [provided by Alliance of Genome Resources, Apr 2022]"),
    ("10090", "235072", "RefSeq", "-"),
]
NAMES = "symbol ncbi_gene_id ensembl hgnc_id full_name locus_group aliases prev_symbols summary refseq_status go_text".split()
HUMAN = [
    ["CD3D", "915", "ENSG00000167286", "HGNC:1673", "CD3 delta subunit", "protein-coding gene", "CD3DELTA", "T3D", "An older sentence.", "reviewed", "synthesis"],
    ["SEPTIN7", "989", "ENSG00000122545", "HGNC:1717", "septin 7", "protein-coding gene", "CDC3|NBLA02942", "CDC10|SEPT7", "", "", "synthesis"],
]
MOUSE_NAMES = "symbol ncbi_gene_id mgi_id ensembl full_name aliases gene_type symbol_2021 summary refseq_status human_ortholog".split()
MOUSE = [
    ["Cd3d", "12500", "MGI:88331", "ENSMUSG00000032094", "CD3 antigen, delta", "T3d", "protein-coding", "", "", "", "CD3D"],
    ["Septin7", "235072", "MGI:1335094", "ENSMUSG00000001833", "septin 7", "Cdc10", "protein-coding", "Sept7", "", "", "SEPTIN7"],
    ["Lonely", "5", "MGI:5", "ENSMUSG00000000005", "lonely gene", "", "protein-coding", "", "", "", ""],
]
PAIRS = [["human_symbol", "mouse_symbol", "hgnc_id", "mgi_id"], ["CD3D", "Cd3d", "HGNC:1673", "MGI:88331"], ["SEPTIN7", "Septin7", "HGNC:1717", "MGI:1335094"]]


def packed(rows=ROWS, header=HEADER):
    return gzip.compress("".join(line + "\n" for line in [header, *("\t".join(r) for r in rows)]).encode(), mtime=0)


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join("\t".join(r) for r in rows).encode()))


pytestmark = pytest.mark.usefixtures("nothing_at_hand")


@pytest.fixture
def data(tmp_path, monkeypatch):
    "A data folder with small joined tables"
    text = tmp_path / "data" / "text"
    write_table(text / "human_gene_summaries.tsv.gz", [NAMES, *HUMAN])
    write_table(text / "mouse_gene_info.tsv.gz", [MOUSE_NAMES, *MOUSE])
    write_table(text / "orthologs_human_mouse.tsv.gz", PAIRS)
    monkeypatch.setenv("SCINTERP_DATA", str(tmp_path / "data"))
    return text


@pytest.fixture
def site():
    with loopback.loopback() as site:
        site.files["gene_summary.gz"] = packed()
        yield site


def get(site, *paths, **options):
    urls = [site.url(p) for p in paths or ["gene_summary.gz"]]
    return ncbi.fetch_summaries(urls=urls, progress=False, **options)


# ------------------------------------------------------------------------------------------------ the file of NCBI


def read(tmp_path, content, name="gene_summary.gz"):
    path = tmp_path / name
    path.write_bytes(content)
    return ncbi.read_gene_summary(path)


def test_columns_providers_and_credits(tmp_path):
    rows = read(tmp_path, packed()).set_index("entrez")
    assert sorted(rows.index) == ["12500", "777777", "915", "989"]  # no fly, no Denisovan, no gene whose summary is a dash
    assert rows.loc["915", ["species", "summary", "provider", "date"]].tolist() == ["human", "Part of the T-cell receptor.", "RefSeq", "2009-02"]
    assert rows.summary["989"] == 'A "septin" of 3\u2032 ends. Sequence Note: none.' and rows.date["989"] == "2008-07"
    assert rows.loc["12500", ["species", "provider"]].tolist() == ["mouse", ALLIANCE]


def test_the_curators_come_first_in_any_order(tmp_path):
    pd.testing.assert_frame_equal(
        read(tmp_path, packed(ROWS[::-1])).sort_values("entrez", ignore_index=True), read(tmp_path, packed()).sort_values("entrez", ignore_index=True)
    )


def test_line_ends_packing_and_column_order_change_nothing(tmp_path):
    expected, plain = read(tmp_path, packed()), gzip.decompress(packed())
    moved = [(r[3], r[0], "new", r[2], r[1]) for r in ROWS]
    for content in (plain, plain.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + plain.rstrip(), packed(moved, "Summary\t#tax_id\tExtra\tSource\tGeneID")):
        pd.testing.assert_frame_equal(read(tmp_path, content), expected)


def test_a_file_cut_anywhere_is_never_half_read(tmp_path):
    whole = packed()
    for cut in range(len(whole)):
        with pytest.raises(DataError):
            read(tmp_path, whole[:cut])
    for at in range(10, len(whole), 7):  # one byte altered: the checksum at the end of the file finds it
        with pytest.raises(DataError):
            read(tmp_path, whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "holds no summaries"),
        (b"<!DOCTYPE HTML>\n<html><title>503</title></html>", "is a web page"),
        (gzip.compress(b"\n\n<html>404</html>\n"), "is a web page"),
        (packed(header=HEADER.replace("GeneID", "gene")), "has no column 'GeneID'"),
        (packed(header=HEADER.replace("\t", ",")), "has no column"),
        (packed()[:-1], "cut short"),
        (packed([("9606", "1", "RefSeq")]), "has too few columns in row 1"),
        (packed([ROWS[0]]), "holds no summary of a human or mouse gene"),
        (packed([]), "holds no summary of a human or mouse gene"),
        (bytes(range(128, 256)) * 9, "is not a text file"),
        (gzip.compress((HEADER + "\n9606\t1\tRefSeq\t").encode() + b"\xff\xfe\n"), "is not a text file"),
    ],
)
def test_a_broken_file_is_one_clear_sentence(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as e:
        read(tmp_path, content)
    assert "gene_summary.gz" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 200


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(database=None, deadline=None)
def test_only_a_credit_is_taken_from_a_text(text):
    plain = " ".join(text.split())
    if not any(f"[{w} by" in text for w in ("provided", "supplied", "contributed")):
        assert ncbi.without_credit(text) == (plain, "")
        kept, date = ncbi.without_credit(f"{text} [provided by RefSeq, Dec 2015].")
        assert kept == (plain if plain.endswith(".") else plain + ".") and date == "2015-12"


# ------------------------------------------------------------------------------------------------ bringing it here


def test_fetched_once_with_its_version(site, data, tmp_path):
    site.faults["moved.gz"] = [loopback.status(404)]
    assert get(site, "moved.gz", "gene_summary.gz") == {"human": 3, "mouse": 1}
    asked = len(site.requests)
    assert get(site) == {"human": 3, "mouse": 1} and len(site.requests) == asked, "what is here is not asked for again"
    table = ncbi.summaries("human")
    assert table.columns.tolist() == ncbi.SUMMARY_COLUMNS and table.attrs["source"] == "fetched" and table.attrs["without_symbol"] == 1
    note = json.loads((tmp_path / "cache" / "ncbi" / "summaries.json").read_text())
    kept = tmp_path / "cache" / "ncbi" / note["file"]
    assert table.attrs["sha256"] == note["sha256"] == file_sha256(kept) and kept.read_bytes() == packed()
    assert note["date"][:2] == "20" and note["urls"][1] == site.url("gene_summary.gz") and note["size"] == len(packed())
    assert sorted(p.name for p in kept.parent.iterdir() if p.is_file() and p.name[0] != ".") == sorted([kept.name, "summaries.json"])


def test_a_broken_line_is_resumed(site):
    site.faults["gene_summary.gz"] = [loopback.cut(50), loopback.cut(20)]
    assert get(site) == {"human": 3, "mouse": 1}
    assert site.asked("gene_summary.gz")[1] == "bytes=50-"


@pytest.mark.parametrize("content", [b"<html>busy</html>", packed()[:-12], packed([r for r in ROWS if r[0] == "9606"]), b""], ids=["web page", "cut", "one species", "empty"])
def test_a_bad_file_never_replaces_a_good_one(site, data, content):
    get(site)
    before = ncbi.summaries("human")
    site.files["gene_summary.gz"] = content
    for _ in range(2):
        with pytest.raises(DataError):
            get(site, refresh=True)
        pd.testing.assert_frame_equal(ncbi.summaries("human"), before)
    site.files["gene_summary.gz"] = packed([(*ROWS[2][:3], "A newer sentence."), ROWS[6]])
    assert get(site, refresh=True) == {"human": 1, "mouse": 1}  # nothing of the bad one is in the way
    assert ncbi.summaries("human").summary.tolist() == ["A newer sentence."]


@pytest.mark.parametrize("harm", [lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.unlink(), lambda p: p.write_bytes(packed([ROWS[2], ROWS[6]]))])
def test_a_kept_file_that_was_altered_is_not_used_and_is_mended(site, data, harm, tmp_path):
    get(site)
    harm(next((tmp_path / "cache" / "ncbi").glob("gene_summary-*.gz")))
    with pytest.raises(DataError, match="run `scinterp fetch summaries`"):
        ncbi.summaries("human")
    assert get(site) == {"human": 3, "mouse": 1} and len(ncbi.summaries("human")) == 2


@pytest.mark.parametrize("note", ["", "{", "[]", '{"file": "gene_summary-0.gz"}', "null"])
def test_a_damaged_note_is_mended(site, data, note, tmp_path):
    path = tmp_path / "cache" / "ncbi" / "summaries.json"
    path.parent.mkdir(parents=True)
    path.write_text(note)
    with pytest.raises(DataError, match="run `scinterp fetch summaries`"):
        ncbi.summaries("human")
    get(site)
    assert len(ncbi.summaries("human")) == 2


def test_offline_says_where_to_put_it_and_takes_it_from_there(site, data, monkeypatch, tmp_path):
    monkeypatch.setenv("SCINTERP_OFFLINE", "1")
    place = tmp_path / "cache" / "ncbi" / "incoming" / "gene_summary.gz"
    with pytest.raises(DataError, match="SCINTERP_OFFLINE forbids downloads") as e:
        get(site)
    assert str(place) in str(e.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"<html>not this</html>")
    with pytest.raises(DataError, match="put it in place of") as e:
        get(site)
    assert place.is_file(), "what a person put there is theirs to delete"
    place.write_bytes(packed())
    assert get(site) == {"human": 3, "mouse": 1} and not site.requests and not place.exists()


def test_two_at_once_bring_it_once(site, data):
    site.pace, found = .01, []
    threads = [threading.Thread(target=lambda: found.append(get(site))) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [{"human": 3, "mouse": 1}] * 3 and len(site.requests) == 1


# ------------------------------------------------------------------------------------------------ the table


def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_nothing_at_hand_is_an_error_and_no_download(monkeypatch):
    no_network(monkeypatch)
    for ask in (lambda: ncbi.summaries("human"), lambda: describe(["CD3D"], source="ncbi"), lambda: describe(["Cd3d"], "mouse", "ncbi")):
        with pytest.raises(InputError, match="run `scinterp fetch summaries`"):
            ask()


def test_fetched_before_local_before_nothing(site, data):
    assert ncbi.summaries("human").set_index("symbol").summary.to_dict() == {"CD3D": "An older sentence."}
    assert ncbi.summaries("human").attrs["source"] == "local" and ncbi.summaries("human").status.tolist() == ["reviewed"]
    get(site)
    assert ncbi.summaries("human").set_index("symbol").summary["CD3D"] == "Part of the T-cell receptor."


def test_symbols_come_by_number(site, data):
    get(site)
    assert ncbi.summaries("human").set_index("symbol").entrez.to_dict() == {"CD3D": "915", "SEPTIN7": "989"}
    renamed = [["CD3NEW", *HUMAN[0][1:]], HUMAN[1]]
    write_table(data / "human_gene_summaries.tsv.gz", [NAMES, *renamed])
    assert ncbi.summaries("human").symbol.tolist() == ["CD3NEW", "SEPTIN7"]  # at once, in the same process


def test_names_without_numbers_cannot_be_joined(site):
    get(site)
    with pytest.raises(InputError, match="run `scinterp fetch genes`"):
        ncbi.summaries("human")  # only the bundled names are here


def test_a_table_handed_out_is_a_copy(site, data):
    get(site)
    table = ncbi.summaries("human")
    table["summary"] = "changed"
    assert "changed" not in set(ncbi.summaries("human").summary)


@needs_real
@pytest.mark.parametrize("species", nm.SPECIES)
def test_real_tables_against_pandas(species, monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    name = dict(human="human_gene_summaries.tsv.gz", mouse="mouse_gene_info.tsv.gz")[species]
    raw = pd.read_csv(REAL / "text" / name, sep="\t", dtype=str, keep_default_na=False, quoting=3).drop_duplicates("symbol").set_index("symbol")
    table = ncbi.summaries(species).set_index("symbol")
    expected = raw.summary[raw.summary != ""].str.split().str.join(" ")
    assert table.summary.to_dict() == expected.to_dict()
    assert table.status.to_dict() == raw.refseq_status[expected.index].to_dict()
    if species == "human":
        assert not set(table.summary) & set(raw.go_text[raw.go_text != ""]), "a synthesis is nobody's summary"


# ------------------------------------------------------------------------------------------------ descriptions


def test_own_text_then_the_orthologs_then_the_name(site, data):
    get(site)
    told = describe(["Cd3d", "Sept7", "Lonely", "nobody"], "mouse", "ncbi")
    assert told.source.tolist() == ["ncbi", "ncbi", "name", "symbol"] and told.ortholog.tolist() == ["", "one2one", "", ""]
    assert told.text.tolist() == [
        "Cd3d: CD3 antigen, delta. Acts in thymocytes.",
        'SEPTIN7: septin 7. A "septin" of 3\u2032 ends. Sequence Note: none.',
        "Lonely: lonely gene.",
        "nobody",
    ]
    assert told.mentions_cell_type.tolist() == [True, False, False, False]
    assert told.attrs["summaries"]["mouse"]["sha256"] == file_sha256(next((nm.cache_dir() / "ncbi").glob("*.gz")))
    with pytest.raises(InputError, match="no summary is by 'RefSeq': choose from Alliance"):
        describe(["Cd3d"], "mouse", "ncbi", provider="RefSeq")
    assert describe(["CD3D", "CD3DELTA"], source="ncbi", provider="RefSeq").source.tolist() == ["ncbi", "ncbi"]


def test_a_card_of_a_mouse_gene_is_one_gene_only(site, data):
    get(site)
    own, borrowed = describe(["Cd3d", "Septin7"], "mouse", "ncbi", "scinterpreter-11").text
    assert "Organism: Mus musculus" in own and "Primary source: MGI:88331" in own and "Homo" not in own
    assert "Organism: Homo sapiens" in borrowed and "Official Symbol: SEPTIN7" in borrowed and "Mus" not in borrowed


def test_the_eleven_lines_are_those_of_the_released_code(site, data):
    get(site)
    told = describe(["SEPT7"], source="ncbi", template="scinterpreter-11")
    assert [line.split(": ")[0] for line in told.text[0].split("\n")] == [
        "Official Symbol", "Official Full Name", "Primary source", "See related", "Gene type", "Organism", "Lineage", "Also known as", "Summary",
    ]
    assert told.attrs["missing_fields"] == {"Annotation information": 1, "Expression": 1}
    assert "Also known as: CDC3; NBLA02942; CDC10; SEPT7\n" in told.text[0] and "See related: Ensembl:ENSG00000122545\n" in told.text[0]
    five = describe(["SEPT7"], source="ncbi", template="scinterpreter-5")
    assert [line.split(": ")[0] for line in five.text[0].split("\n")] == ["Gene name", "Gene type", "Organism", "Summary"]
    assert describe(["SEPT7"], source="ncbi", template="genept").text[0] == 'A "septin" of 3\u2032 ends. Sequence Note: none.'


FIELDS = ["name", "id", "related", "kind", "organism", "lineage", "aliases", "summary"]


@given(st.fixed_dictionaries({f: st.sampled_from(["", f"<{f}>"]) for f in FIELDS}), st.sampled_from(list(TEMPLATES)))
@settings(database=None, deadline=None, max_examples=300)
def test_a_template_writes_what_there_is_and_nothing_else(card, template):
    write, fields = TEMPLATES[template]
    text = write(card | dict(symbol="<symbol>", mark=None))
    wanted = {card[f] for f in fields.values() if f and f != "symbol" and card[f]}
    if template == "genept" and not card["summary"]:
        wanted = {card["name"]} - {""}  # falls back to the name
    assert {w for w in (f"<{f}>" for f in FIELDS) if w in text} == wanted
    assert text and not any(line.endswith(": ") or line.endswith(":") or not line for line in text.split("\n"))
    assert all(text.count(w) == 1 for w in wanted)


def test_the_demos_texts_stay_whatever_is_at_hand(site, data):
    from scinterp.cells.datasets import load

    demo = [str(g) for g in load("demo").var_names]
    get(site)
    assert digest(demo, describe(demo).text.tolist()) == DEMO_TEXT
    assert digest(demo, describe(demo, source="bundled", template="name-summary").text.tolist()) == DEMO_TEXT
    marks = nm.bundled_genes().mentions_cell_type.astype(bool).to_dict()
    symbols = match_genes(demo).symbol
    assert [marks[s] for s in symbols] == describe(demo).mentions_cell_type.tolist()


@pytest.mark.parametrize("answers", [["text"], None, "text", {"CD79A": None}, {"CD79A": 3}, pd.Series({"CD79A": "text"})], ids=lambda a: type(a).__name__)
def test_a_model_that_answers_in_another_form_is_told_so(answers):
    for ask in (lambda: describe(["CD79A"], source="llm", chat=lambda *_: answers), lambda: describe_terms(["CD79A"], "drug", "llm", chat=lambda *_: answers)):
        with pytest.raises(InputError, match="let it return a dict of name to text"):
            ask()


def test_a_model_is_asked_once_a_gene_and_never_about_unknown_names():
    asked = []

    def model(symbols, species):
        asked.append((symbols, species))
        return {s: f"About\n{s}." for s in symbols} | {"extra": "not asked for", "MS4A1": " "}

    told = describe(["CD79A", "my secret column", "MS4A1", "CD79A"], source="llm", chat=model)
    assert asked == [(["CD79A", "MS4A1"], "human")]
    assert told.text.tolist() == ["About CD79A.", "my secret column", f"MS4A1: {nm.bundled_genes().name['MS4A1']}.", "About CD79A."]
    assert told.source.tolist() == ["llm", "symbol", "name", "llm"]


def test_no_known_gene_is_no_question():
    assert describe(["my secret column"], source="llm", chat=lambda *_: 1 / 0).source.tolist() == ["symbol"]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(source="NCBI"), "source must be one of bundled, ncbi, llm, symbol"),
        (dict(template="card"), "template must be one of scinterpreter-11"),
        (dict(source="ncbi", chat=print), "takes no option 'chat': it takes provider"),
        (dict(source="bundled", provider="RefSeq"), "takes no option 'provider'"),
        (dict(source="llm"), "pass chat="),
        (dict(source="symbol", template="genept"), "has no words for"),
        (dict(species="fly"), "species must be one of"),
    ],
)
def test_a_wrong_choice_is_one_clear_sentence(options, words):
    with pytest.raises(InputError, match=words) as e:
        describe(["CD79A"], **options)
    assert "\n" not in str(e.value)


@needs_real
def test_real_demo_genes_as_counted_before(monkeypatch):
    "reference counts made with other code: 563 of the demo's genes have a RefSeq summary, 10 are clones that nothing names"
    from scinterp.cells.datasets import load

    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    told = describe(load("demo").var_names, source="ncbi")
    assert told.source.value_counts().to_dict() == {"ncbi": 563, "name": 192, "symbol": 10}


@needs_real
def test_real_mouse_genes_speak_as_their_human_orthologs_do(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    names = nm.gene_names("mouse")
    genes = names.symbol[names.kind == "protein-coding"].sample(3000, random_state=0).tolist()
    told = describe(genes, "mouse", "ncbi")
    own = set(ncbi.summaries("mouse").symbol)
    assert ((told.source == "ncbi") & (told.ortholog == "")).tolist() == [g in own for g in genes]
    borrowed = told[told.ortholog != ""]
    pairs = one_ortholog(borrowed.gene, "mouse", "human")
    assert len(borrowed) > 1000 and borrowed.text.tolist() == describe(pairs.ortholog, "human", "ncbi").text.tolist()
    assert borrowed.ortholog.tolist() == pairs.choice.tolist()


# ------------------------------------------------------------------------------------------------ terms and reports


def test_every_bundled_cell_type_is_found_by_its_name_and_synonyms():
    types = cell_types()
    assert describe_terms(types.index).name.tolist() == types.index.tolist()
    told = describe_terms([s for synonyms, cl in zip(types.synonyms, types.cl_id) if cl for s in synonyms.split("|") if len(s) > 3])
    found = told.name != ""
    assert found.mean() > .9
    for term, name in zip(told.term[found], told.name[found]):  # the type that is so called, or has it as a synonym
        assert set(label_words(term)) in [set(label_words(label)) for label in (name, *types.synonyms[name].split("|"))], term


def test_terms_without_a_text_are_their_name():
    told = describe_terms(["asthma", "", "asthma"], "disease")
    assert told.text.tolist() == ["asthma", "", "asthma"] and set(told.source) == {"name"}
    with pytest.raises(InputError, match="takes no option 'chat'"):
        describe_terms(["asthma"], "disease", chat=print)


KNOWN = ["CD79A", "MS4A1", "SEPT7", "nobody", "MALAT1", "7-Sep"]


@given(st.lists(st.tuples(st.sampled_from(KNOWN), st.floats(0, 1e6)), max_size=12))
@settings(database=None, deadline=None)
def test_coverage_adds_up(rows):
    told = describe([g for g, _ in rows])
    mass = [m for _, m in rows]
    report = coverage(told, mass)
    parts = report.drop("all")
    assert report.loc["all", "genes"] == len(rows) == parts.genes.sum() and parts.unknown.sum() == (told.symbol == "").sum()
    assert not rows or abs(parts.share.sum() - 1) < 1e-9
    assert sum(mass) == 0 or abs(parts.mass.sum() - 1) < 1e-9
    assert not rows or abs((parts.genes * parts.cell_type).sum() - told.mentions_cell_type.sum()) < 1e-6


@pytest.mark.parametrize(
    "text, named",
    [
        ("T-cell receptor", True), ("expressed by B lymphocytes", True), ("Natural killer triggering receptor", True), ("vascular smooth muscle", True),
        ("the cell cycle", False), ("endocytic vesicles", False), ("NFKB activating protein", False), ("cell adhesion molecule B", False),
        ("muscle contraction", False), ("killer of bacteria", False), ("Purkinje cells", True), ("", False),
    ],
)
def test_words_that_name_a_kind_of_cell(text, named):
    assert names_cell_type(text) is named and names_cell_type(text.upper()) is named
