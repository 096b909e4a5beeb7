"""Vectors are kept whole or made again, by one process or two; gene tables lose nothing and hide nothing."""
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from scinterp.text import vector_cache
from scinterp.text.vector_cache import _shards, encode_once, vector_folder

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
    (path,) = _shards(vector_folder(Letters()))
    path.write_bytes(change(path.read_bytes()))
    again, third = Letters(), Letters()
    np.testing.assert_array_equal(encode_once(TEXTS, again)[0], Letters()(TEXTS))
    np.testing.assert_array_equal(encode_once(TEXTS, third)[0], Letters()(TEXTS))
    assert third.asked == 0
    assert len(_shards(vector_folder(third))) == 1
    return again.asked


def size(cache):
    encode_once(TEXTS, Letters())
    return _shards(vector_folder(Letters()))[0].stat().st_size


def test_cut_at_every_byte(cache):
    for n in range(size(cache)):
        assert damaged(lambda content: content[:n]) == len(TEXTS), n


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
    builder = start(cache, log, 0.3, 0, 40)
    folder = next(iter([vector_folder(type("Slow", (), {"name": "slow", "revision": "1"}))]))
    for _ in range(600):
        if len(_shards(folder)) >= 2:
            break
        time.sleep(0.05)
    builder.send_signal(signal.SIGKILL)
    builder.wait(10)
    kept = len(_shards(folder)) * 4
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
