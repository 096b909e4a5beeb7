"""Files of the naming authorities, whole and broken, served as their publishers would; and names that must not be guessed."""
import gzip
import importlib.util
import json
import sys
import threading
import time
import types
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.cells import nomenclature as nm
from scinterp.cells.identifiers import HOWS, candidates, folded_species_shares, identifier_kind, kind_shares, match_genes, one_ortholog, orthologs
from scinterp.core import DataError
from scinterp.text.descriptions import describe
from scinterp.text.gene_tables import GeneTable

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"
needs_real = pytest.mark.skipif(not (REAL / "text" / "mouse_gene_info.tsv.gz").is_file(), reason="the folder of real tables is not here")
DEMO_TEXT = "7e7a168ce0d455f813cfd05a92de59eb9f9b4892874a7dc893109d08aaf7d3c6"  # in data/results/demo/run.json

HGNC = (
    "hgnc_id symbol name locus_group locus_type status location location_sortable alias_symbol alias_name prev_symbol prev_name gene_group gene_group_id "
    "date_approved_reserved date_symbol_changed date_name_changed date_modified entrez_id ensembl_gene_id vega_id ucsc_id ena refseq_accession ccds_id "
    "uniprot_ids pubmed_id mgd_id rgd_id lsdb cosmic omim_id mirbase homeodb snornabase bioparadigms_slc orphanet pseudogene.org horde_id merops imgt iuphar "
    "kznf_gene_catalog mamit-trnadb cd lncrnadb enzyme_id intermediate_filament_db rna_central_ids lncipedia gtrnadb agr mane_select gencc"
).split()
NCBI = (
    "#tax_id GeneID Symbol LocusTag Synonyms dbXrefs chromosome map_location description type_of_gene Symbol_from_nomenclature_authority "
    "Full_name_from_nomenclature_authority Nomenclature_status Other_designations Modification_date Feature_type"
).split()
MARKERS = [
    "MGI Accession ID", "Chr", "cM Position", "genome coordinate start", "genome coordinate end", "strand", "Marker Symbol", "Status", "Marker Name",
    "Marker Type", "Feature Type", "Marker Synonyms (pipe-separated)",
]
ALLIANCE = [
    "MGI Accession ID", "Marker Symbol", "Marker Name", "Feature Type", "EntrezGene ID", "NCBI Gene chromosome", "NCBI Gene start", "NCBI Gene end",
    "NCBI Gene strand", "Ensembl Gene ID", "Ensembl Gene chromosome", "Ensembl Gene start", "Ensembl Gene end", "Ensembl Gene strand", "CCDS IDs", "HGNC ID",
]
HOM = [
    "DB Class Key", "Common Organism Name", "NCBI Taxon ID", "Symbol", "EntrezGene ID", "Mouse MGI ID", "HGNC ID", "OMIM Gene ID", "Genetic Location",
    "Genome Coordinates (mouse: GRCm39 human: GRCh38)", "Nucleotide RefSeq IDs", "Protein RefSeq IDs", "SWISS_PROT IDs",
]


def row(header, **values):
    "One line: `values` by column (spaces and signs written as _), the rest empty"
    plain = {"".join(c if c.isalnum() else "_" for c in h): h for h in header}
    assert set(values) <= set(plain), set(values) - set(plain)
    cells = {plain[k]: v for k, v in values.items()}
    return [cells.get(h, "") for h in header]


def hgnc(number, symbol, name, aliases="", previous="", status="Approved", **more):
    return row(HGNC, hgnc_id=f"HGNC:{number}", symbol=symbol, name=name, locus_group="protein-coding gene", locus_type="gene with protein product",
               status=status, alias_symbol=aliases, prev_symbol=previous, **more)


def ncbi(taxon, gene, symbol, xrefs="-", synonyms="-", official="-", kind="protein-coding", name="-"):
    values = [taxon, gene, symbol, "-", synonyms, xrefs, "1", "-", name, kind, official, name if official != "-" else "-", "O" if official != "-" else "-", "-", "20250101", "-"]
    assert len(values) == len(NCBI)
    return values


def hom(key, symbol, mgi="", hgnc=""):
    return [key, "mouse, laboratory" if mgi else "human", "10090" if mgi else "9606", symbol, "1", mgi, hgnc] + [""] * 6


UPSTREAM = {
    "hgnc_complete_set.txt": [
        HGNC,
        hgnc(1673, "CD3D", "CD3 delta subunit of T-cell receptor complex", "", "T3D", entrez_id="915", ensembl_gene_id="ENSG00000167286"),
        hgnc(1717, "SEPTIN7", "septin 7", "CDC3", '"CDC10|SEPT7"', entrez_id="989", ensembl_gene_id="ENSG00000122545"),
        hgnc(28077, "MARCHF2", "membrane associated ring-CH-type finger 2", '"MARCH-II|RNF172"', "MARCH2", entrez_id="51257", ensembl_gene_id="ENSG00000099785"),
        hgnc(26064, "MTARC2", "mitochondrial amidoxime reducing component 2", "", '"MOSC2|MARC2"', entrez_id="54996", ensembl_gene_id="ENSG00000117791"),
        hgnc(10963, "SLC22A1", "solute carrier family 22 member 1", '"OCT1|HOCT1"', "", entrez_id="6580", ensembl_gene_id="ENSG00000175003"),
        hgnc(9212, "POU2F1", 'POU class 2 homeobox 1, the "octamer" one', "OCT1", "OTF1", entrez_id="5451", ensembl_gene_id="ENSG00000143190"),
        hgnc(1817, "CEACAM5", "CEA cell adhesion molecule 5", "CD66e", "CEA", entrez_id="1048", ensembl_gene_id="ENSG00000105388"),
        hgnc(1819, "CEACAM7", "CEA cell adhesion molecule 7", "", "CGM2", entrez_id="1087", ensembl_gene_id="ENSG00000007306"),
        hgnc(4931, "HLA-A", "major histocompatibility complex, class I, A", "", "", entrez_id="3105", ensembl_gene_id="ENSG00000206503"),
        hgnc(2, "OLD1", "taken back", status="Entry Withdrawn"),
    ],
    "Homo_sapiens.gene_info.gz": [
        NCBI,
        ncbi("9606", "915", "CD3D", "MIM:186790|HGNC:HGNC:1673|Ensembl:ENSG00000167286|AllianceGenome:HGNC:1673", "CD3DELTA|T3D", "CD3D"),
        ncbi("9606", "989", "SEPT7", "HGNC:HGNC:1717|Ensembl:ENSG00000122545", "NBLA02942", "SEPTIN7"),
        ncbi("9606", "124900001", "LOC124900001", kind="ncRNA", name='uncharacterized "LOC124900001"'),
        ncbi("9606", "126860000", "LOC126860000", kind="biological-region"),
        ncbi("9606", "100", "NEWENTRY", kind="other"),
        ncbi("741158", "8923216", "ATP6"),
    ],
    "Mus_musculus.gene_info.gz": [
        NCBI,
        ncbi("10090", "12500", "Cd3d", "MGI:MGI:88331|Ensembl:ENSMUSG00000032094", "T3d", "Cd3d"),
        ncbi("10090", "235072", "Sept7", "MGI:MGI:1335094", "Cdc10", "Septin7"),
    ],
    "MRK_List2.rpt": [
        MARKERS,
        row(MARKERS, MGI_Accession_ID="MGI:88331", Marker_Symbol="Cd3d", Status="O", Marker_Name='CD3 antigen, "delta"', Marker_Type="Gene", Feature_Type="protein coding gene"),
        row(MARKERS, MGI_Accession_ID="MGI:1335094", Marker_Symbol="Septin7", Status="O", Marker_Name="septin 7", Marker_Type="Gene", Marker_Synonyms__pipe_separated_="Cdc10|Sept7"),
        row(MARKERS, MGI_Accession_ID="MGI:1920500", Marker_Symbol="Ceacam5", Status="O", Marker_Name="CEA cell adhesion molecule 5", Marker_Type="Gene"),
        row(MARKERS, MGI_Accession_ID="NULL", Marker_Symbol="Xyz1", Status="W", Marker_Name="withdrawn, = Cd3d", Marker_Type="Gene"),
        row(MARKERS, MGI_Accession_ID="MGI:5", Marker_Symbol="Aaq1", Status="O", Marker_Name="a stretch", Marker_Type="QTL"),
    ],
    "MRK_ENSEMBL.rpt": [
        ["MGI:88331", "Cd3d", "CD3 antigen", "24.84", "9", "ENSMUSG00000032094", "ENSMUST1 ENSMUST2", "", "protein coding gene", "1", "2", "+", "protein_coding"],
        ["MGI:1335094", "Septin7", "septin 7", "10.63", "9", "ENSMUSG00000001833", "", "", "1", "2", "+", "protein_coding"],
    ],
    "HGNC_AllianceHomology.rpt": [
        ALLIANCE,
        ["MGI:88331", "Cd3d", "CD3 antigen", "protein coding gene", "12500", "9", "1", "2", "+", "ENSMUSG00000032094", "9", "1", "2", "+", "CCDS1", "HGNC:1673", ""],
        ["MGI:1920500", "Ceacam5", "CEA cell adhesion molecule 5", "protein coding gene", "73250"] + ["null"] * 11 + [""],
    ],
    "HOM_MouseHumanSequence.rpt": [
        HOM, hom("1", "Cd3d", "MGI:88331"), hom("1", "CD3D", hgnc="HGNC:1673"), hom("2", "Ceacam5", "MGI:1920500"), hom("2", "CEACAM7", hgnc="HGNC:1819"),
        hom("3", "Ceacam1", "MGI:1347245"), hom("3", "CEACAM5", hgnc="HGNC:1817"), hom("3", "CEACAM7", hgnc="HGNC:1819"), hom("4", "Only", "MGI:4"),
    ],
}
READERS = {
    "hgnc_complete_set.txt": nm.read_hgnc,
    "Homo_sapiens.gene_info.gz": partial(nm.read_gene_info, species="human"),
    "Mus_musculus.gene_info.gz": partial(nm.read_gene_info, species="mouse"),
    "MRK_List2.rpt": nm.read_mgi_markers,
    "MRK_ENSEMBL.rpt": nm.read_mgi_ensembl,
    "HGNC_AllianceHomology.rpt": nm.read_mgi_alliance,
    "HOM_MouseHumanSequence.rpt": nm.read_orthologs,
}


def content(name, end="\n"):
    text = "".join("\t".join(cells) + end for cells in UPSTREAM[name])
    return gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()


pytestmark = pytest.mark.usefixtures("nothing_at_hand")


def plain(data):
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def packed_as(data, like):
    return gzip.compress(data) if like[:2] == b"\x1f\x8b" else data


BROKEN = {
    "cut short": lambda d: d[: len(d) * 2 // 3] if d[:2] == b"\x1f\x8b" else d[: d.rstrip().rfind(b"\t") - 30],
    "web page": lambda d: b"<!DOCTYPE HTML PUBLIC>\n<html><head><title>503 Service Unavailable</title></head></html>\n",
    "packed web page": lambda d: gzip.compress(b"\n<html>404</html>"),
    "empty": lambda d: b"",
    "header only": lambda d: packed_as(plain(d).split(b"\n")[0] + b"\n", d) if b"MGI:" not in plain(d).split(b"\n")[0] else b"\n",
    "altered header": lambda d: packed_as(plain(d).replace(b"ymbol", b"ame of the gene", 1).replace(b"ENSMUSG", b"OTTMUSG"), d),
    "other columns": lambda d: packed_as(plain(d).replace(b"\t", b","), d),
    "binary": lambda d: bytes(range(128, 256)) * 9,
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", UPSTREAM)
def test_a_broken_file_is_one_clear_sentence(name, how, tmp_path):
    path = tmp_path / name
    path.write_bytes(content(name))
    assert len(READERS[name](path)) >= 2
    path.write_bytes(BROKEN[how](content(name)))
    with pytest.raises(DataError) as e:
        READERS[name](path)
    message = str(e.value)
    assert name in message and "\n" not in message and len(message) < 200
    assert any(fix in message for fix in ("download it again", "its layout has changed", "of another species"))


@pytest.mark.parametrize("name", UPSTREAM)
def test_line_ends_and_packing_change_nothing(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content(name))
    expected = READERS[name](path)
    path.write_bytes(plain(content(name, end="\r\n")))  # as a browser that unpacks, on Windows
    pd.testing.assert_frame_equal(READERS[name](path), expected)
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain(content(name)).rstrip(b"\n")))  # packed, with a byte-order mark, no last line end
    pd.testing.assert_frame_equal(READERS[name](path), expected)


def test_columns_are_found_by_name(tmp_path):
    table = pd.DataFrame(UPSTREAM["hgnc_complete_set.txt"][1:], columns=HGNC)
    path = tmp_path / "moved.txt"
    table[HGNC[::-1]].assign(new="x").to_csv(path, sep="\t", index=False, quoting=3)
    (tmp_path / "hgnc.txt").write_bytes(content("hgnc_complete_set.txt"))
    pd.testing.assert_frame_equal(nm.read_hgnc(path), nm.read_hgnc(tmp_path / "hgnc.txt"))


def test_the_file_of_another_species(tmp_path):
    path = tmp_path / "Mus_musculus.gene_info.gz"
    path.write_bytes(content(path.name))
    with pytest.raises(DataError, match="holds no gene of human"):
        nm.read_gene_info(path, "human")


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\t\n\r|", exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=4), max_size=4))
@settings(deadline=None, database=None)
def test_union_keeps_each_item_once_in_order(lists):
    joined = nm._union(*["|".join(items) for items in lists])
    items = joined.split("|") if joined else []
    expected = []
    for item in [i.strip() for some in lists for i in some]:
        if item and item not in expected:
            expected.append(item)
    assert items == expected


# ------------------------------------------------------------------------------------------------ downloads, over a loopback connection


def simple_fetch(name, urls, sha256="", folder=None, progress=True):
    "What `downloads.fetch` promises, without its care: used only where that module is not there"
    path = Path(folder) / name
    if path.is_file():
        return path
    for url in urls:
        try:
            data = urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path
    raise DataError(f"{name} could not be downloaded: put it at {path}")


@pytest.fixture
def fetch(monkeypatch):
    if importlib.util.find_spec("scinterp.cells.downloads") is None:
        monkeypatch.setitem(sys.modules, "scinterp.cells.downloads", types.SimpleNamespace(fetch=simple_fetch))


@pytest.fixture
def publishers(tmp_path, fetch):
    "A loopback server with the upstream files; gives its folder, its log of files asked for, and the sources of a species"
    folder, asked = tmp_path / "served", []
    folder.mkdir()
    for name in UPSTREAM:
        (folder / name).write_bytes(content(name))

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {"": "application/octet-stream"}

        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"

    def sources(species):
        return {name: [f"{root}/gone/{name}", f"{root}/{name}"] for name in nm.SOURCES[species]}  # the first address has moved

    yield types.SimpleNamespace(folder=folder, asked=asked, sources=sources)
    server.shutdown()
    server.server_close()


def get(publishers, species, **options):
    return nm.fetch_names(species, sources=publishers.sources(species), progress=False, **options)


def test_human_end_to_end(publishers):
    names = get(publishers, "human")
    assert names.attrs["source"] == "fetched" and names.symbol.is_unique
    assert "OLD1" not in set(names.symbol) and "ATP6" not in set(names.symbol) and "LOC124900001" in set(names.symbol)
    septin = names.set_index("symbol").loc["SEPTIN7"]
    assert septin[["entrez", "ensembl", "previous", "id"]].tolist() == ["989", "ENSG00000122545", "CDC10|SEPT7", "HGNC:1717"]
    assert septin.aliases.split("|") == ["CDC3", "SEPT7", "NBLA02942"]
    rows = match_genes(["CD3DELTA", "MARCH2", "2-Mar", "OCT1", "ENSG00000167286.3", "HLA.A", "Septin7", "T3D", "LOC124900001"]).set_index("gene")
    assert rows.symbol.tolist() == ["CD3D", "MARCHF2", "", "", "CD3D", "HLA-A", "", "CD3D", "LOC124900001"]
    assert rows.how.tolist() == ["alias", "previous", "ambiguous", "ambiguous", "ensembl", "punctuation", "", "previous", "symbol"]
    assert sorted(candidates("OCT1")) == ["POU2F1", "SLC22A1"]


def test_mouse_end_to_end(publishers):
    names = get(publishers, "mouse")
    assert sorted(names.symbol) == ["Cd3d", "Ceacam5", "Septin7"]
    cd3d = names.set_index("symbol").loc["Cd3d"]
    assert cd3d[["name", "entrez", "ensembl", "id"]].tolist() == ['CD3 antigen, "delta"', "12500", "ENSMUSG00000032094", "MGI:88331"]
    assert match_genes(["Sept7", "ENSMUSG00000001833", "Cd3d"], "mouse").how.tolist() == ["alias", "ensembl", "symbol"]
    assert orthologs(["Ceacam5", "Cd3d"], "mouse", "human").ortholog.tolist() == ["CEACAM7", "CD3D"]  # Ceacam5 is not the ortholog of CEACAM5
    get(publishers, "human")
    rows = orthologs(["CEACAM7"], "human", "mouse").set_index("ortholog").type
    assert rows.to_dict() == {"Ceacam1": "many2many", "Ceacam5": "one2many"}
    assert orthologs(["Ceacam5"], "mouse", "human").type.tolist() == ["many2one"]  # the same pair, seen from mouse
    told = describe(["Ceacam5", "Cd3d"], "mouse")
    assert told.ortholog.tolist()[1] == "one2one" and "CEACAM5" not in told.text[0]


def test_the_note_tells_where_the_table_came_from(publishers, tmp_path):
    get(publishers, "human")
    note = json.loads((tmp_path / "cache" / "nomenclature" / "human.json").read_text())
    assert set(note["sources"]) == {"hgnc_complete_set.txt", "Homo_sapiens.gene_info.gz"}
    assert all(len(s["sha256"]) == 64 and s["size"] for s in note["sources"].values()) and note["date"][:2] == "20"


def test_fetched_once_then_read_without_the_network(publishers):
    get(publishers, "human")
    before = len(publishers.asked)
    assert len(get(publishers, "human")) == len(nm.gene_names("human")) and len(publishers.asked) == before


def test_refresh_gets_the_new_files(publishers):
    get(publishers, "human")
    name = "hgnc_complete_set.txt"
    (publishers.folder / name).write_bytes(content(name).replace(b"septin 7", b"septin seven"))
    assert "septin 7" in set(get(publishers, "human").name)
    assert "septin seven" in set(get(publishers, "human", refresh=True).name)


def test_a_web_page_is_refused_and_the_old_table_stays(publishers):
    old = get(publishers, "human")
    name = "hgnc_complete_set.txt"
    (publishers.folder / name).write_bytes(BROKEN["web page"](b""))
    with pytest.raises(DataError, match="web page.*refresh=True"):
        get(publishers, "human", refresh=True)
    pd.testing.assert_frame_equal(nm.gene_names("human"), old)
    (publishers.folder / name).write_bytes(content(name))
    pd.testing.assert_frame_equal(get(publishers, "human", refresh=True), old)


def test_a_publisher_that_is_gone_says_where_to_put_the_file(publishers, tmp_path):
    (publishers.folder / "MRK_List2.rpt").unlink()
    with pytest.raises(DataError, match="MRK_List2.rpt") as e:
        get(publishers, "mouse")
    by_hand = tmp_path / "cache" / "nomenclature" / "files" / "MRK_List2.rpt"
    assert str(by_hand) in str(e.value) and nm.gene_names("mouse").attrs["source"] == "bundled"
    by_hand.write_bytes(content("MRK_List2.rpt"))
    assert get(publishers, "mouse").attrs["source"] == "fetched"


def test_a_run_killed_between_table_and_note_changes_nothing(publishers, monkeypatch):
    old = get(publishers, "human")

    def killed(*args):
        raise KeyboardInterrupt

    name = "hgnc_complete_set.txt"
    (publishers.folder / name).write_bytes(content(name).replace(b"septin 7", b"septin seven"))
    with monkeypatch.context() as m:
        m.setattr(nm, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            get(publishers, "human", refresh=True)
    pd.testing.assert_frame_equal(nm.gene_names("human"), old)
    assert "septin seven" in set(get(publishers, "human").name)


def test_a_kept_table_that_was_altered_is_not_used(publishers, tmp_path):
    get(publishers, "human")
    table = next((tmp_path / "cache" / "nomenclature").glob("human-*.tsv.gz"))
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()).replace(b"CD3D", b"CD3X")))
    nm._names.cache_clear()  # as in a new process
    with pytest.raises(DataError, match="altered after it was fetched"):
        nm.gene_names("human")


def test_nothing_is_downloaded_silently(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    match_genes(["CD3D", "no-such-gene"]), orthologs(["CD3D"], "human", "mouse"), describe(["Cd3d"], "mouse"), nm.gene_names("mouse"), nm.ortholog_table()


# ------------------------------------------------------------------------------------------------ names that must not be guessed


@pytest.mark.parametrize("genes, kind", [
    (["CD3D"] * 9 + ["ENSG00000167286"], "symbol"), (["CD3D"] * 8 + ["ENSG00000167286"] * 2, "mixed"), (["7157", "915.0"], "entrez"),
    (["ENSG00000167286.12", "ENSMUSG00000032094.1"], "ensembl-version"), (["ENST00000300692", "ENSG1"], "symbol"),
])
def test_kinds(genes, kind):
    assert identifier_kind(genes) == kind


def test_numbers_are_ids_only_among_numbers(publishers):
    get(publishers, "human")
    assert match_genes(["915", "989"]).symbol.tolist() == ["CD3D", "SEPTIN7"]
    assert match_genes(["915", "CD3D", "SEPTIN7"]).symbol.tolist() == ["", "CD3D", "SEPTIN7"]


@pytest.mark.parametrize("name", ["NA", "na", "nan", "NaN", "None", "N/A", "<NA>", "null", "", "  ", None, float("nan"), pd.NA])
def test_a_missing_name_is_no_gene(name, publishers):
    name_of_xk = [hgnc("12811", "XK", "X-linked Kx blood group antigen", "", '"NA|NAN|NONE|NULL|N/A"', entrez_id="7504")]  # NA is true, the others might be
    (publishers.folder / "hgnc_complete_set.txt").write_bytes("".join("\t".join(r) + "\n" for r in UPSTREAM["hgnc_complete_set.txt"] + name_of_xk).encode())
    get(publishers, "human")
    assert match_genes(["XK"]).symbol.tolist() == ["XK"] and match_genes([name]).iloc[0, 1:].tolist() == ["", ""] and candidates(name) == []
    with pytest.raises(DataError, match="no gene names"):
        identifier_kind([name] * 3)
    assert identifier_kind(["915", "989", *[name] * 8]) == "entrez", "what is missing is of no kind"


def test_blanks_around_a_name_are_not_part_of_it():
    rows = match_genes([" CD3D", "SEPT7\t", "\u00a0CD4 ", "CD3D", "CD3D-1 "])
    assert rows.symbol.tolist() == ["CD3D", "SEPTIN7", "CD4", "CD3D", "CD3D"] and rows.gene.tolist()[0] == " CD3D", "names are given back as they came"
    assert identifier_kind([" 915 ", "989"]) == "entrez" and candidates(" SEPT7 ") == ["SEPTIN7"]


@pytest.mark.parametrize("numbers", [range(30), range(1, 31), [f"{i}.0" for i in range(30)], list(range(30))[::-1], [3, 1, 2, 0, *range(4, 30)]])
def test_positions_are_no_genes(numbers, publishers):
    (publishers.folder / "hgnc_complete_set.txt").write_bytes("".join("\t".join(r) + "\n" for r in UPSTREAM["hgnc_complete_set.txt"] + [
        hgnc("5", "A1BG", "alpha-1-B glycoprotein", entrez_id="1"), hgnc("7", "A2M", "alpha-2-macroglobulin", entrez_id="2")]).encode())
    get(publishers, "human")
    assert match_genes(["1", "9", "915"]).symbol.tolist() == ["A1BG", "", "CD3D"]
    assert identifier_kind(numbers) == "position" and set(match_genes(numbers).symbol) == {""}
    assert kind_shares([*numbers, "CD3D"]).index[0] == "position" and match_genes([*numbers, "CD3D"]).symbol.tolist() == [""] * 30 + ["CD3D"]


def test_numbers_match_where_they_are_half_of_the_list(publishers):
    get(publishers, "human")
    assert identifier_kind(["915", "989", "CD3D", "CEACAM5"]) == "mixed"
    assert match_genes(["915", "989", "CD3D", "CEACAM5"]).symbol.tolist() == ["CD3D", "SEPTIN7", "CD3D", "CEACAM5"]
    assert match_genes(["915", "989", "CD3D", "CEACAM5", "SEPT7"]).symbol.tolist() == ["", "", "CD3D", "CEACAM5", "SEPTIN7"]


def test_former_names_in_other_case(publishers):
    get(publishers, "human")
    rows = match_genes(["HOCT1", "hoct1", "cdc10", "march-ii", "oct1", "Cdc10", "Sept7"])
    assert rows.symbol.tolist() == ["SLC22A1", "SLC22A1", "SEPTIN7", "MARCHF2", "", "", ""], "two genes claim oct1; Cdc10 and Sept7 are written as in mouse"
    assert rows.how.tolist() == ["alias", "case", "case", "case", "ambiguous", "", ""]
    get(publishers, "mouse")
    assert match_genes(["CD3D", "T3D", "SEPT7", "cdc10"], "mouse").symbol.tolist() == ["", "", "", "Septin7"], "as human genes are, or were, written"


@pytest.mark.parametrize("species, names, symbols", [
    ("human", ["GRCh38_CD3D", "hg19_CD3D", "hg38-SEPT7", "GRCh38______HLA.A", "GRCh38_cd3d", "mm10___Cd3d", "mm10_CD3D", "GRCh38_none", "hg19_", "GRCh38_2-Mar"],
     ["CD3D", "CD3D", "SEPTIN7", "HLA-A", "CD3D", "", "", "", "", ""]),
    ("mouse", ["mm10___Cd3d", "GRCm39_Cd3d", "GRCm38.p6_Septin7", "GRCh38_CD3D", "hg19_Cd3d"], ["Cd3d", "Cd3d", "Septin7", "", ""]),
])
def test_a_genome_before_the_name(species, names, symbols, publishers):
    get(publishers, species)
    rows = match_genes(names, species)
    assert rows.symbol.tolist() == symbols and set(rows.how[rows.symbol != ""]) == {"prefix"} and set(rows.how) <= set(HOWS)
    assert match_genes(["GRCh38_CD3D", "GRCh38_CD3D-1"]).how.tolist()[1] == "punctuation"


def test_genes_of_one_species_show_in_any_case(publishers):
    names = ["CD3D", "SEPTIN7", "SLC22A1", "HLA-A", "no-gene"]
    assert folded_species_shares(names).to_dict() == dict(human=0, mouse=0), "the bundled genes say nothing"
    get(publishers, "human")
    assert folded_species_shares(names).to_dict() == dict(human=0, mouse=0), "nor does one table alone"
    get(publishers, "mouse")
    assert folded_species_shares(names).to_dict() == dict(human=0.4, mouse=0) == folded_species_shares(n.lower() for n in names).to_dict()
    assert folded_species_shares([]).to_dict() == dict(human=0, mouse=0)


def test_a_suffix_is_taken_off_only_beside_the_name_itself():
    assert match_genes(["CD3D-1"]).symbol.tolist() == [""]
    assert match_genes(["CD3D-1", "CD3D", "CD3D.1"]).symbol.tolist() == ["CD3D"] * 3
    assert match_genes(["no-gene", "no-gene-1"]).symbol.tolist() == ["", ""]
    assert match_genes(["TMBIM4", "TMBIM4-1"]).symbol.tolist()[1] == "TMBIM4-1"  # described under this name; see the demo


def test_names_of_the_other_species_are_not_another_case():
    human, mouse = match_genes(["Cd79a", "Ms4a1", "cd79a", "CD79a"]), match_genes(["CD79A", "CD3D", "cd3d"], "mouse")
    assert human.how.tolist() == ["", "", "case", "case"] and mouse.how.tolist() == ["", "", "case"]


@pytest.mark.parametrize("date", ["1-Mar", "2-Mar", "Mar-01", "Mar-02", "02-mar"])
def test_dates_of_two_genes_are_ambiguous_whatever_is_at_hand(date, publishers):
    for _ in range(2):
        assert match_genes([date]).iloc[0].tolist() == [date, "", "ambiguous"] and len(candidates(date)) == 2
        get(publishers, "human")


def test_odd_input_is_text():
    rows = match_genes([None, float("nan"), 5, "", "\n", "x" * 10_000, "CD3D"])
    assert rows.symbol.tolist() == [""] * 6 + ["CD3D"] and set(rows.how) <= set(HOWS)


def test_a_gene_table_knows_its_symbols_after_a_round_trip(tmp_path):
    table = GeneTable.build(["SEPT7", "no-such-gene", "CD3D"], "human", encoder="tfidf")
    table.save(tmp_path / "t.safetensors")
    back = GeneTable.load(tmp_path / "t.safetensors")
    assert back.symbols == table.symbols == ["SEPTIN7", "", "CD3D"] and back.permuted(1).symbols == table.symbols
    assert back.align(["SEPTIN7", "7-Sep", "cd3d", "no-such-gene", "CD4"]).tolist() == [0, 0, 2, 1, -1]


# ------------------------------------------------------------------------------------------------ on the real tables


@needs_real
def test_the_demo_is_the_same_with_and_without_the_full_tables(monkeypatch):
    from scinterp.cells.datasets import load
    from scinterp.core import digest

    genes = [str(g) for g in load("demo").var_names]
    bundled, texts = match_genes(genes), describe(genes)
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    assert nm.gene_names("human").attrs["source"] == "local"
    pd.testing.assert_frame_equal(match_genes(genes), bundled)
    pd.testing.assert_frame_equal(describe(genes), texts)
    assert digest(genes, texts.text.tolist()) == DEMO_TEXT


@needs_real
@pytest.mark.parametrize("species", nm.SPECIES)
def test_every_symbol_and_id_of_a_full_table_finds_its_gene(species, monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    table = nm.gene_names(species)
    assert match_genes(table.symbol, species).symbol.tolist() == table.symbol.tolist()
    unique = table[(table.ensembl != "") & ~table.ensembl.str.contains("|", regex=False) & ~table.ensembl.duplicated(keep=False)]
    assert match_genes(unique.ensembl + ".7", species).symbol.tolist() == unique.symbol.tolist()
    numbered = table[table.entrez != ""]
    assert match_genes(numbered.entrez, species).symbol.tolist() == numbered.symbol.tolist()


@needs_real
def test_old_names_in_capitals_and_missing_ones(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    assert match_genes(["NA", "C6ORF48", "nan"]).symbol.tolist() == ["", "SNHG32", ""]
    shouted, former = match_genes(["1700001C02RIK", "1700001C02Rik"], "mouse").to_dict("records")
    assert shouted["symbol"] == former["symbol"] != "" and (shouted["how"], former["how"] in ("previous", "alias")) == ("case", True)


@needs_real
def test_the_species_of_real_files_shows_through_the_case(monkeypatch):
    import anndata as ad

    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    files = sorted(REAL.glob("*.h5ad"))
    assert len(files) >= 10
    for path in files:
        own, other = ("human", "mouse") if "human" in path.stem else ("mouse", "human")
        shares = folded_species_shares(str(g).upper() for g in ad.read_h5ad(path, backed="r").var_names)
        assert shares[own] > 0.04 and shares[other] < 0.0035, (path.stem, shares.to_dict())


@needs_real
def test_no_name_of_two_genes_is_given_to_one(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    table, shipped = nm.gene_names("human"), nm.bundled_genes()
    known = set(table.symbol) | set("|".join(shipped.aliases).split("|"))
    previous = set("|".join(table.previous).split("|"))
    for column in ("previous", "aliases"):  # an independent way to count: long table of pairs
        pairs = table[["symbol", column]].assign(**{column: table[column].str.split("|")}).explode(column).drop_duplicates()
        shared = pairs[column][pairs[column].duplicated(keep=False) & (pairs[column] != "")].unique()
        names = [n for n in shared if n not in known]
        if column == "aliases":
            names = [n for n in names if n not in previous]  # a previous symbol of one gene is surer than an alias of two
        rows = match_genes(names)
        assert len(names) > 50 and set(rows.how) == {"ambiguous"} and set(rows.symbol) == {""}


@needs_real
def test_one_ortholog_is_told_from_an_arbitrary_one(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    rows = one_ortholog(["Cd3d", "Ceacam1", "H4c3", "Ceacam5", "Hes4"], "mouse", "human").set_index("gene")
    assert rows.ortholog.tolist()[:2] == ["CD3D", "CEACAM1"] and rows.choice.tolist()[:2] == ["one2one", "same-name"]
    assert "H4C3" not in rows.ortholog["H4c3"] and rows.ortholog["Ceacam5"] == "CEACAM7" and rows.choice["Hes4"] == ""


@needs_real
def test_thirty_thousand_names_take_under_a_second(monkeypatch):
    monkeypatch.setenv("SCINTERP_DATA", str(REAL))
    table = nm.gene_names("human")
    names = [*table.symbol[:15_000], *table.ensembl[:7_000], *(f"unknown-{i}.x" for i in range(8_000))]
    match_genes(["CD3D", "HLA.A", "zz-9"])  # the tables are read
    seconds = min(timed(match_genes, names) for _ in range(3))
    assert seconds < 1, f"{seconds:.2f} s"


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
