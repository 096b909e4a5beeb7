"""Published vectors: what is read equals what `pickle` reads, and no file, however made, runs anything or ends in a traceback."""
import io
import json
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import zipfile
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scinterp.core import InputError
from scinterp.text import published_tables
from scinterp.text.gene_tables import GeneTable
from scinterp.text.published_tables import _open_pickle, _vector, import_vectors

quick = settings(database=None, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def read(tmp_path):
    "Write bytes to a file and import it"
    path = tmp_path / "vectors.pickle"

    def call(content):
        path.write_bytes(content)
        return import_vectors(path, "human")

    return call


def refused(read, content, words=None):
    with pytest.raises(InputError, match=words) as caught:
        read(content)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- equal to pickle

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
vector = st.one_of(
    st.lists(numbers, max_size=3), st.lists(st.one_of(numbers, st.integers(-1000, 1000)), min_size=1, max_size=120), st.lists(numbers, max_size=40).map(tuple),
    st.integers(0, 3000).map(lambda n: np.random.default_rng(n).standard_normal(n).tolist()),
    arrays(st.sampled_from(["<f2", "<f4", "<f8", ">f4", ">f8"]), st.integers(1, 40), elements=st.floats(-100, 100, width=16)),
    st.lists(numbers, max_size=5).map(lambda v: [np.float32(x) for x in v]))


@quick
@given(st.dictionaries(st.text(max_size=8), vector, max_size=8), st.integers(0, 5), st.booleans())
def test_reads_what_pickle_reads(tmp_path, found, protocol, python):
    path = tmp_path / "v.pickle"
    if python:  # the pickler written in Python puts frames elsewhere
        pickle._Pickler(buffer := io.BytesIO(), protocol).dump(found)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_bytes(pickle.dumps(found, protocol))
    ours = _open_pickle(path)
    assert list(ours) == list(found)
    for key, value in pickle.loads(path.read_bytes()).items():
        np.testing.assert_array_equal(_vector(ours[key]) if len(value) else [], np.asarray(value, np.float32))


@pytest.mark.parametrize("protocol", range(6))
def test_long_lists_and_shared_ones(tmp_path, protocol):
    rng = np.random.default_rng(protocol)
    shared = rng.standard_normal(1536).tolist()
    found = {f"gene{i}": rng.standard_normal(1536).tolist() for i in range(50)} | {"alias": shared, "again": shared, "two": rng.standard_normal((1, 1536))}
    path = tmp_path / "v.pickle"
    path.write_bytes(pickle.dumps(found, protocol))
    table = import_vectors(path, "human")
    assert table.genes == list(found) and table.vectors.shape == (53, 1536)
    for gene, row in zip(table.genes, table.vectors):
        np.testing.assert_array_equal(row, np.float32(found[gene]).ravel())


def test_pickles_of_python_2(read):
    "As numpy under Python 2 wrote them, protocol 2: names and bytes are both `str`"
    raw = np.arange(2.0).tobytes()
    content = (b"\x80\x02}q\x00U\x03CD4q\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08"
               b"cnumpy\ndtype\nq\tU\x02f8q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x10" + raw + b"q\x0ftq\x10bs.")
    assert read(content).vectors.tolist() == [[0, 1]]


# ---- nothing runs


class Calls:
    "Pickled as a call"
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class State:
    def __reduce__(self):
        return Fraction, (1, 2), {"x": 1}


MARK = "harm-was-done"
HARM = f"open({MARK!r}, 'w')"
HOSTILE = {
    "os.system": Calls(os.system, f"touch {MARK}"),
    "eval": Calls(eval, HARM),
    "exec": Calls(exec, HARM),
    "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
    "open": Calls(open, MARK, "w"),
    "subprocess": Calls(subprocess.check_call, ["touch", MARK]),
    "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {MARK}"))),
    "numpy load": Calls(np.load, MARK, None, True),
    "object array": np.array([Calls(os.system, f"touch {MARK}")], dtype=object),
    "record array": np.zeros(2, dtype=[("a", "f8")]),
    "memmap": Calls(np.memmap, MARK, "f8", "w+", 0, (3,)),
    "a state": State(),
    "a frame": pd.DataFrame({"a": [1]}),
    "a set": {1, 2},
    "complex": 1j,
    "integers": np.arange(3),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_objects_are_refused(name, protocol, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for found in (HOSTILE[name], {"CD4": HOSTILE[name]}, {"CD4": [1.0, HOSTILE[name]]}, {"CD4": [1.0], "CD8A": (1.0, HOSTILE[name])}):
        refused(read, pickle.dumps(found, protocol), "vectors.pickle holds")
    assert not (tmp_path / MARK).exists()


RAW = {
    "global": b"cos\nsystem\n(S'touch harm-was-done'\ntR.",
    "inst": b"(S'touch harm-was-done'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch harm-was-done'\no.",
    "newobj": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__class__.mro\x93.",
    "an attribute of ours": b"\x80\x04\x8c\x16numpy.core.multiarray\x8c\x18_reconstruct.__globals__\x93.",
    "not a name": b"\x80\x04K\x01K\x02\x93.",
    "persistent id": b"\x80\x02}(X\x01\x00\x00\x00aPany\nu.",
    "binary persistent id": b"\x80\x02}(X\x01\x00\x00\x00aX\x01\x00\x00\x00bQu.",
    "extension": b"\x80\x02\x82\x01.",
    "out of band": b"\x80\x05\x97.",
    "call of a list": b"]]R.",
    "call of what is no tuple": b"cnumpy\ndtype\n]R.",
    "too many arguments": b"cnumpy\ndtype\n(S'f8'\nS'f8'\ntR.",
    "state of a name": b"cnumpy\ndtype\n}S'x'\nK\x01sb.",
    "state of a list": b"]}b.",
    "array without a state": b"}S'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tS'b'\ntRs.",
    "huge bytes": b"\x80\x04}\x8c\x01a\x8e" + struct.pack("<Q", 2**62) + b"u.",
    "huge text": b"\x80\x04}\x8d" + struct.pack("<Q", 2**62) + b"u.",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**63 - 1) + b".",
    "huge integer": b"}S'a'\n(lI" + b"9" * 100_000 + b"\nas.",
    "huge integer, binary": b"\x80\x02}X\x01\x00\x00\x00a]\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b"as.",
    "negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "huge place in memory": b"\x80\x02]r\xff\xff\xff\xff0.",
    "never remembered": b"\x80\x02j\xff\xff\xff\xff.",
    "empty stack": b".",
    "pop of nothing": b"0.",
    "no mark": b"u.",
    "marks below the stack": b"K\x01(0(0ee.",
    "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "two pickles": pickle.dumps({"a": [1.0]}) * 2,
    "not a dictionary": pickle.dumps([1.0, 2.0]),
    "a number": pickle.dumps(1.0),
    "a later protocol": b"\x80\xff\xff.",
    "nothing": b"",
    "text": b"SYMBOL\t1.0\n",
    "a web page": b"<html>not found</html>",
    "keys that are numbers": pickle.dumps({1: [1.0]}),
    "keys that are arrays": b"(cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tS'b'\ntR]d.",
    "words": pickle.dumps({"CD4": "CD4"}),
    "dictionaries": pickle.dumps({"CD4": {"CD8A": [1.0]}}),
    "matrices": pickle.dumps({"CD4": np.eye(2)}),
    "nan": pickle.dumps({"CD4": [1.0, float("nan")]}),
    "infinite": pickle.dumps({"CD4": np.array([1e300])}),
    "zeros": pickle.dumps({"CD4": [0.0, 0.0]}),
    "widths": pickle.dumps({"CD4": [1.0, 0.0], "CD8A": [1.0]}),
    "no genes": pickle.dumps({}),
    "huge shape": b"\x80\x05}X\x01\x00\x00\x00acnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8) + b"cnumpy\ndtype\n(U\x02f8\x89\x88tR(" + (b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000) * 8 + b"tU\x01CtRs.",
    "empty vectors": pickle.dumps({"CD4": [], "CD8A": []}),
}


@pytest.mark.parametrize("name", RAW)
def test_hostile_bytes_are_refused(name, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(read, RAW[name])
    assert not (tmp_path / MARK).exists()


def test_the_refused_name_is_told(read):
    assert "'os.system'" in refused(read, RAW["global"])
    assert "'os system'" in refused(read, RAW["inst"])
    assert "'builtins.eval'" in refused(read, pickle.dumps(HOSTILE["eval"]))
    assert "PERSID" in refused(read, RAW["persistent id"])


BOMBS = {  # short files that ask for much
    "nested tuples": lambda: b"\x80\x02)" + b"\x85" * 3_000_000 + b".",
    "nested lists": lambda: b"\x80\x02" + b"]" * 3_000_000 + b"a" * 2_999_999 + b".",
    "marks": lambda: b"(" * 3_000_000 + b".",
    "remembered": lambda: b"\x80\x04" + b"]\x940" * 2_500_000 + b".",
    "laughs": lambda: b"\x80\x02]q\x00" + b"".join(b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)) + b".",
    "one vector under many names": lambda: b"\x80\x02]q\x00(" + b"G" + b"G".join([struct.pack(">d", 1.0)] * 60_000) + b"e0}("
                                           + b"".join(b"U\x05%05dh\x00" % i for i in range(60_000)) + b"u.",
}


@pytest.mark.slow(15)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_early(name, tmp_path):
    "In a process that may take 2 GB, so that a bomb that goes off is a failure and not the end of the machine"
    path = tmp_path / "vectors.pickle"
    path.write_bytes(BOMBS[name]())
    code = ("import sys; from scinterp.core import InputError\nfrom scinterp.text.published_tables import import_vectors\n"
            "try: import_vectors(sys.argv[1], 'human')\nexcept InputError as e: print(e)")
    limit = 2 * 2**30
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    assert done.returncode == 0 and done.stdout.startswith("vectors.pickle "), done.stderr[-500:]


# ---- damaged files

GOOD = {"SEPT7": [1.0, 2.0], "SEPTIN7": [0.5] * 2, "CD4": np.array([1.0, 3.0]), "CD8A": np.array([1, 2], "f4"), "LYZ": [np.float64(2), 1.0]}


@pytest.mark.parametrize("protocol", range(6))
def test_cut_at_every_byte(protocol, read):
    content = pickle.dumps(GOOD, protocol)
    assert len(read(content)) == 4
    for n in range(len(content)):
        refused(read, content[:n])


ALTERED = """
import os, random, sys
import numpy as np
from scinterp.core import InputError
from scinterp.text.published_tables import import_vectors
path, protocol = sys.argv[1], int(sys.argv[2])
content, rng, done = open(path, "rb").read(), random.Random(protocol), []

def read(content):
    with open(path, "wb") as f: f.write(content)
    try: table = import_vectors(path, "human")
    except InputError as e: assert "\\n" not in str(e), e
    else: assert np.isfinite(table.vectors).all()

def note(event, args):
    file = args[0].co_filename if event == "exec" and hasattr(args[0], "co_filename") else ""
    if event in ("exec", "os.system", "subprocess.Popen", "os.exec", "pickle.find_class") and not os.path.exists(file): done.append(event)

for warm in (content, content[:9], b""): read(warm)  # what is imported late is imported now
sys.addaudithook(note)
exec("1"); assert done == ["exec"], "the watch sees nothing"
done.clear()
for _ in range(400):
    bad = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        bad[rng.randrange(len(bad))] = rng.choice([rng.randrange(256), ord(rng.choice("()]}.0122NRbcdeghijklopqrstu"))])
    read(bytes(bad))
assert done == [], done
"""


@pytest.mark.slow(4)
@pytest.mark.parametrize("protocol", range(6))
def test_altered_bytes_never_end_in_a_traceback_or_a_call(protocol, tmp_path):
    "In a process of its own, under an audit hook: nothing is executed, whatever the bytes say"
    path = tmp_path / "vectors.pickle"
    path.write_bytes(pickle.dumps(GOOD, protocol))
    done = subprocess.run([sys.executable, "-c", ALTERED, str(path), str(protocol)], capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-1000:]


WORDS = [op.code.encode("latin-1") for op in pickletools.opcodes]


@quick
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=9), st.just(b"cnumpy\ndtype\n"), st.just(b"U\x02f8")), max_size=40))
def test_any_instructions(tmp_path, words):
    path = tmp_path / "v.pickle"
    path.write_bytes(b"".join(words) + b".")
    try:
        import_vectors(path, "human")
    except InputError:
        pass


# ---- JSON, archives


@pytest.mark.parametrize("text", ['{"CD4": ' + "[" * 100_000, '{"CD4": [1e999]}', '{"CD4": [NaN]}', '{"CD4": [' + "9" * 5000 + "]}", '{"CD4": [1' + "0" * 400 + "]}", '{"CD4": ["1"]}',
                                  '{"CD4": 1}', '{"CD4": null}', '{"CD4": [[1], [2]]}', '{"CD4": [[1], [2, 3]]}', '{"CD4": [1]} more', "{}", '{"CD4": [1], "CD4": [1]}', '{"\udcff'])
def test_json_that_is_no_table_is_refused(text, read):
    refused(read, text.encode("utf-8", "surrogateescape"))


def test_json_equals_pickle(read):
    found = {g: list(map(float, v)) for g, v in GOOD.items()}
    tables = [read(content) for content in (json.dumps(found).encode(), b"\xef\xbb\xbf \n" + json.dumps(found).encode(), pickle.dumps(GOOD))]
    assert len({t.sha256 for t in tables}) == 1


def test_archives_are_not_opened(read):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as z:
        z.writestr("a.pickle", pickle.dumps(GOOD))
    refused(read, buffer.getvalue(), "unpack it")


def test_a_file_that_is_too_large(read, monkeypatch):
    monkeypatch.setattr(published_tables, "MOST_BYTES", 100)
    refused(read, pickle.dumps(GOOD), "at most 100")


# ---- what is kept


def test_what_is_left_out_is_counted(tmp_path):
    path, out = tmp_path / "v.pickle", tmp_path / "v.safetensors"
    found = {f"no-gene-{i}": [1.0, float(i)] for i in range(40)} | {"SEPT7": [7.0, 1.0], "SEPTIN7": [7.0, 2.0], "cd4": [4.0, 4.0], "CD8A": [0.0, 0.0], "LYZ": [1.0], "": [1.0, 2.0], "\ud800": [1.0, 2.0]}
    path.write_bytes(pickle.dumps(found))
    table = import_vectors(path, "human", out, "made up")
    assert table.info["coverage"] == {"not recognised": 40, "approved symbol": 1, "another name": 1}
    assert table.info["left_out"] == {"second name of a gene": 1, "another width": 1, "zeros (no text)": 1, "not a name": 2}
    assert table.vectors_for(["SEPTIN7", "SEPT7", "CD4", "no-gene-3"]).tolist() == [[7, 2], [7, 2], [4, 4], [1, 3]]
    assert table.align(["CD8A", "LYZ"]).tolist() == [-1, -1]
    back = GeneTable.load(out)
    assert back.info == table.info and back.sha256 == table.sha256 and "text_sha256" not in back.info
    assert str(tmp_path) not in json.dumps(back.info)
