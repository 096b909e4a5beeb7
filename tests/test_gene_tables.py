"""Vectors are kept whole or made again, by one process or two; gene tables lose nothing and hide nothing."""
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scinterp.core import InputError
from scinterp.text import vector_cache
from scinterp.text.gene_tables import GeneTable
from scinterp.text.vector_cache import encode_once, vector_folder
from scinterp.text.vector_store import VectorStore

TEXTS = ["cat", "tag", "gattaca"]
COUNTER = """
import sys, time
import numpy as np
from scinterp.text import vector_cache
vector_cache.BATCH = 4

class Slow:
    name, revision, truncated = 'slow', '1', 0
    def __call__(self, texts, progress=False):
        for t in texts:
            with open(sys.argv[1], 'a') as log: log.write(t + '\\n')
        time.sleep(float(sys.argv[2]))
        return np.array([[len(t), int(t)] for t in texts], np.float32)

texts = [str(i) for i in range(int(sys.argv[3]), int(sys.argv[4]))]
vectors, _ = vector_cache.encode_once(texts, Slow())
assert vectors[:, 1].astype(int).astype(str).tolist() == texts
"""


class Letters:
    name, revision, truncated, asked = "letters", "1", 0, 0

    def __call__(self, texts, progress=False):
        self.asked += len(texts)
        return np.array([[t.count(c) for c in "acgt"] for t in texts], np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- the vector cache


def damaged(change):
    "Texts asked of the encoder when its one file is changed, after checking that the answer is right and the next one free"
    encode_once(TEXTS, Letters())
    (path,) = VectorStore(vector_folder(Letters())).files()
    path.write_bytes(change(path.read_bytes()))
    again, third = Letters(), Letters()
    np.testing.assert_array_equal(encode_once(TEXTS, again)[0], Letters()(TEXTS))
    np.testing.assert_array_equal(encode_once(TEXTS, third)[0], Letters()(TEXTS))
    assert third.asked == 0
    assert len(VectorStore(vector_folder(third)).files()) == 1
    return again.asked


def size(cache):
    encode_once(TEXTS, Letters())
    return VectorStore(vector_folder(Letters())).files()[0].stat().st_size


@pytest.mark.slow(5)
def test_cut_at_every_byte(cache):
    for n in range(size(cache)):
        assert damaged(lambda content: content[:n]) == len(TEXTS), n


@pytest.mark.slow(5)
def test_every_byte_altered(cache):
    for n in range(size(cache)):
        assert damaged(lambda content: content[:n] + bytes([content[n] ^ 0x41]) + content[n + 1:]) == len(TEXTS), n


def test_lengthened(cache):
    assert damaged(lambda content: content + b"\0") == len(TEXTS)


def start(cache, *args):
    return subprocess.Popen([sys.executable, "-c", COUNTER, *map(str, args)], stderr=subprocess.PIPE, text=True)


def test_two_processes_embed_no_text_twice(cache, tmp_path):
    log = tmp_path / "log"
    builders = [start(cache, log, 0.05, 0, 24), start(cache, log, 0.05, 8, 32), start(cache, log, 0.05, 0, 32)]
    for builder in builders:
        assert builder.wait(120) == 0, builder.stderr.read()
    assert sorted(log.read_text().split(), key=int) == [str(i) for i in range(32)]


def test_a_killed_builder_loses_one_batch(cache, tmp_path):
    log = tmp_path / "log"
    builder = start(cache, log, 1, 0, 40)
    folder = vector_folder(type("Slow", (), {"name": "slow", "revision": "1"}))
    for _ in range(600):
        if len(VectorStore(folder).files()) >= 2:
            break
        time.sleep(0.05)
    builder.send_signal(signal.SIGKILL)
    builder.wait(10)
    kept = len(VectorStore(folder).files()) * 4
    (folder / f".{'0' * 64}.safetensors.half.safetensors").write_bytes(b"half")  # as a kill within a write leaves it
    assert 8 <= kept < 40
    log.unlink()
    again = start(cache, log, 0, 0, 40)
    assert again.wait(60) == 0, again.stderr.read()
    assert sorted(map(int, log.read_text().split())) == list(range(kept, 40))
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_batch_that_fails_loses_none_before_it(cache, monkeypatch):
    monkeypatch.setattr(vector_cache, "BATCH", 1)

    class Breaks(Letters):
        def __call__(self, texts, progress=False):
            if texts == ["gattaca"]:
                raise ConnectionError("gone")
            return super().__call__(texts)

    with pytest.raises(ConnectionError):
        encode_once(TEXTS, Breaks())
    encoder = Letters()
    encode_once(TEXTS, encoder)
    assert encoder.asked == 1


def test_a_folder_that_cannot_be_written_costs_only_time(cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the cache should be")
    np.testing.assert_array_equal(encode_once(TEXTS, Letters())[0], Letters()(TEXTS))


def test_cut_texts_are_counted_from_the_cache_too(cache):
    class Cuts(Letters):
        max_tokens = 3

        def __call__(self, texts, progress=False):
            self.truncated_rows = [len(t) > 3 for t in texts]
            self.truncated = sum(self.truncated_rows)
            return super().__call__(texts)

    assert encode_once(TEXTS, Cuts())[1] == 1
    assert encode_once(["gattaca", "gattaca"], Cuts())[1] == 2
    assert encode_once(["tag"], Cuts())[1] == 0


def test_an_encoder_that_only_counts_leaves_it_unknown(cache):
    class Counts(Letters):
        truncated = 1

    assert encode_once(TEXTS, Counts())[1] is None
    assert encode_once(["act"], Counts())[1] == 1


# ---- gene tables

GENES = ["CD79A", "CD3D", "CD4", "CD8A", "MS4A1", "GNLY", "LYZ", "NKG7"]
finite = st.floats(-1e6, 1e6, width=32)


@st.composite
def tables(draw, species="human"):
    "Tables of some known genes and one unknown, zero vectors among them"
    genes = draw(st.lists(st.sampled_from([*GENES, "no-such-gene"]), min_size=1, unique=True))
    vectors = draw(arrays(np.float32, (len(genes), draw(st.integers(1, 5))), elements=finite))
    info = draw(st.dictionaries(st.sampled_from(["source", "encoder", "text_sha256"]), st.text(max_size=5)))
    return GeneTable(vectors, genes if species == "human" else [g.capitalize() for g in genes], species, info)


quick = settings(database=None, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(vectors):
    return sorted(v.tobytes() for v in vectors)


@quick
@given(tables(), st.integers(0, 99))
def test_permuted_keeps_the_vectors_and_random_their_lengths(table, seed):
    assert rows(table.permuted(seed).vectors) == rows(table.vectors)
    noise = table.random(seed).vectors
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), np.linalg.norm(table.vectors, axis=1), rtol=1e-5)
    assert table.permuted(seed).genes == table.random(seed).genes == table.genes


def test_permuted_deals_and_random_forgets():
    table = GeneTable(np.arange(800, dtype=np.float32).reshape(100, 8), [f"g{i}" for i in range(100)])
    moved = (table.permuted(1).vectors != table.vectors).any(1)
    assert moved.mean() > 0.9
    assert (table.permuted(1).vectors != table.permuted(2).vectors).any()
    assert abs(np.corrcoef(table.random(1).vectors.ravel(), table.vectors.ravel())[0, 1]) < 0.2


@quick
@given(tables(), tables(), st.booleans())
def test_a_joined_table_splits_into_its_parts(a, b, scale):
    both = a.concat(b, scale)
    left, right = np.split(both.vectors, [a.dim], axis=1)
    assert both.genes[:len(a)] == a.genes and set(both.genes) == {*a.genes, *b.genes}
    np.testing.assert_array_equal(left[:len(a)], a.vectors)
    assert not left[len(a):].any()
    factor = both.info["parts"][1]["scale"]
    for g, v in zip(both.genes, right):
        np.testing.assert_array_equal(v, b.vectors[b.genes.index(g)] * np.float32(factor) if g in b.genes else np.zeros(b.dim))
    assert scale or factor == 1
    assert ("text_sha256" in both.info) == (all(t.info.get("text_sha256") for t in (a, b)))


def test_joined_parts_are_of_one_mean_length():
    rng = np.random.default_rng(0)
    a, b = (GeneTable(rng.standard_normal((4, 3)).astype(np.float32) * f, GENES[:4]) for f in (1, 100))
    left, right = np.split(a.concat(b).vectors, 2, axis=1)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1).mean(), np.linalg.norm(right, axis=1).mean(), rtol=1e-5)


@quick
@given(tables(), tables("mouse"))
def test_species_are_joined_by_ortholog(human, mouse):
    both = human.concat(mouse, scale=False)
    assert both.genes == human.genes
    named = {g.upper(): v for g, v in zip(mouse.genes, mouse.vectors)}
    for g, v in zip(both.genes, both.vectors[:, human.dim:]):
        np.testing.assert_array_equal(v, named[g] if g in named and g in GENES else np.zeros(mouse.dim))


@quick
@given(tables())
def test_saved_bit_for_bit(tmp_path, table):
    table.save(tmp_path / "t.safetensors")
    back = GeneTable.load(tmp_path / "t.safetensors")
    assert back.vectors.tobytes() == table.vectors.tobytes() and back.vectors.dtype == np.float32
    assert (back.genes, back.symbols, back.species, back.info, back.sha256) == (table.genes, table.symbols, table.species, table.info, table.sha256)


def test_every_altered_or_missing_byte_of_a_saved_table_is_refused(tmp_path):
    path, table = tmp_path / "t.safetensors", GeneTable(np.eye(2, 3, dtype=np.float32), ["CD4", "LYZ"], info=dict(source="bundled"))
    table.save(path)
    content = path.read_bytes()
    for n in range(len(content)):
        for bad in (content[:n], content[:n] + bytes([content[n] ^ 1]) + content[n + 1:], content[:n] + b"\n" + content[n + 1:]):
            path.write_bytes(bad)
            if bad[n:n + 1] == b"\n" and content[n:n + 1] == b" " and content[:n + 1].rstrip().endswith(b"}"):
                assert GeneTable.load(path).sha256 == table.sha256  # padding between header and vectors: nothing is in it
                continue
            with pytest.raises(InputError, match="make it again"):
                GeneTable.load(path)


@quick
@given(st.lists(st.sampled_from(["CD4", "cd4", "LEU2", "CD8A", "ENSG00000010610", "Cd4", "", "no-such-gene", "SEPT7", "7-Sep"]), max_size=6))
def test_align_reports_what_it_returns(genes):
    table = GeneTable(np.eye(3), ["CD8A", "CD4", "SEPTIN7"])
    told = table.align(genes, report=True)
    assert told.gene.tolist() == genes and told.row.tolist() == table.align(genes).tolist()
    assert ((told.row < 0) == (told.how == "")).all()
    assert all(table.genes[r] == g for g, r, how in told.itertuples(index=False) if how == "exact")


def test_cells_are_aligned_by_the_species_they_say():
    anndata = pytest.importorskip("anndata")
    import pandas as pd

    cells = anndata.AnnData(np.zeros((1, 2)), var=pd.DataFrame(index=["Cd4", "CD8A"]), uns=dict(scinterp_source=dict(species="mouse")))
    table = GeneTable(np.eye(2), ["CD8A", "CD4"])
    assert table.align(cells).tolist() == [1, -1]
    assert table.align(cells, species="human").tolist() == [-1, 0]


def test_build_is_the_same_from_an_empty_and_a_full_cache(cache):
    built = [GeneTable.build(["CD4", "LYZ", "no-such-gene"], "human", "symbol", Letters()) for _ in range(2)]
    assert built[0].vectors.tobytes() == built[1].vectors.tobytes() and built[0].info == built[1].info
    assert built[0].info["truncated"] == 0 and str(cache.parent) not in str(built[0].info)


def test_a_fitted_encoder_is_fitted_to_what_it_is_given(cache):
    a = GeneTable.build(GENES[:4], "human", encoder="tfidf").vectors
    b = GeneTable.build(GENES, "human", encoder="tfidf").vectors
    assert a.shape[1] != b.shape[1]
    np.testing.assert_array_equal(GeneTable.build(GENES[:4], "human", encoder="tfidf").vectors, a)
