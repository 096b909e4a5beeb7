"""The API encoder against a server that misbehaves: nothing lost, nothing paid twice, a clear end, and the key in no message or file."""
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from api_server import (BATCHES, EMBEDDINGS, FILES, altered, api_server, body, broken_json, busy, error, hang, missing, nan, other_schema,
                        out_of_order, reset, status, twice, vector, width, zeros)
from loopback import cut
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from scinterp.core import InputError, ModelError
from scinterp.text import api_encoders
from scinterp.text.api_encoders import OpenAIEncoder
from scinterp.text.cost import count_tokens, estimate
from scinterp.text.vector_cache import encode_once
from scinterp.text.vector_store import VectorStore, text_key

KEY, SMALL = "sk-test-0123456789abcdef", "text-embedding-3-small"
TEXTS = [f"GENE{i}: protein number {i}" for i in range(20)]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("SCINTERP_OFFLINE", "OPENAI_BASE_URL", "SCINTERP_PRICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api():
    with api_server(key=KEY) as api:
        yield api


@pytest.fixture
def make(api, tmp_path):
    "An encoder of 16 numbers that loses no time"
    def make(model=SMALL, **options):
        options = dict(base_url=api.base_url, dimensions=16, folder=tmp_path, backoff=.01, timeout=1, poll=.01, inputs=4) | options
        return OpenAIEncoder(model, **options)
    return make


def right(vectors, texts=TEXTS, size=16):
    return np.allclose(vectors, [vector(t, size) for t in texts], atol=1e-6)


def sent(api):
    "Every text that was sent to be embedded, as often as it was"
    return [t for r in api.paths(EMBEDDINGS) for t in r.json["input"]]


def paid(api, texts=TEXTS):
    "Whether exactly these texts were paid for, once"
    return api.usage["prompt"] == sum(map(api.count, texts))


# ---- the plain way


def test_vectors_are_those_of_the_server_each_text_once(api, make):
    encode = make()
    vectors = encode(TEXTS + TEXTS[:3])
    assert vectors.dtype == np.float32 and right(vectors, TEXTS + TEXTS[:3]) and sent(api) == TEXTS and encode.requests == 5
    assert right(make()(TEXTS[::-1]), TEXTS[::-1]) and sent(api) == TEXTS, "a new encoder finds what is stored"
    assert (encode.name, encode.max_tokens, encode.truncated) == (f"openai:{SMALL}", 8192, 0) and encode.revision.startswith(f"{SMALL}-16@127.0.0.1")
    assert encode([]).shape == (0, 16)


def test_full_width_is_the_known_one_and_kept_apart(api, make):
    assert make()(TEXTS[:2]).shape == (2, 16) and make(dimensions=None)(TEXTS[:2]).shape == (2, 1536) and make(SMALL, dimensions=8)(TEXTS[:2]).shape == (2, 8)
    assert len(sent(api)) == 6 and right(make(dimensions=None)(TEXTS[:2]), TEXTS[:2], 1536)
    assert make("some-model", dimensions=None)(TEXTS[:2]).shape == (2, 8)


@pytest.mark.parametrize("kind", ["float", "base64"])
def test_both_encodings(api, make, kind, monkeypatch):
    monkeypatch.setattr(OpenAIEncoder, "_body", lambda self, texts: dict(model=self.model, input=texts, encoding_format=kind, dimensions=self.dimensions))
    assert right(make()(TEXTS))


def test_the_limits_of_a_request(api, make):
    texts = [f"{i} " + "Phosphorylation of CD79A by LYN. " * 300 for i in range(100)]
    assert make(inputs=2048)(texts).shape == (100, 16)
    assert sent(api) == texts and len(api.paths(EMBEDDINGS)) == 2, "the server would refuse more than 300,000 tokens"
    make(inputs=2048)([f"t{i}" for i in range(2100)])
    assert [len(r.json["input"]) for r in api.paths(EMBEDDINGS)[2:]] == [2048, 52]


def test_a_long_text_is_the_mean_of_its_parts_and_counted(api, make):
    text = "The receptor binds its ligand and signals. " * 2000
    encode = make()
    v = encode([text, "short"])
    parts = [t for t in sent(api) if t != "short"]
    assert encode.truncated == 1 and "".join(parts) == text and len(parts) > 1 and max(map(api.count, parts)) <= 8192
    mean = np.average([vector(p, 16) for p in parts], axis=0, weights=list(map(len, parts)))
    assert np.allclose(v[0], mean / np.linalg.norm(mean), atol=1e-6) and right(v[1:], ["short"])


def test_a_server_with_smaller_limits_is_sent_smaller_requests(api, make):
    api.trouble = lambda r: error(400, "array too long, at most 3 inputs") if len(r.json["input"]) > 3 else None
    assert right(make(inputs=2048)(TEXTS)) and paid(api)
    api.trouble = lambda r: error(400, "maximum context length is 5 tokens")
    with pytest.raises(ModelError, match="maximum context length"):
        make()(["one text more"])


# ---- what cannot be used, and what must not be


@pytest.mark.parametrize("texts, why", [(["a", " "], "text 1 is empty"), (["\udfff"], "half a character")])
def test_texts_that_the_api_would_refuse(api, make, texts, why):
    with pytest.raises(InputError, match=why):
        make()(texts)
    assert not api.seen


def test_no_key_no_network(api, make, monkeypatch, tmp_path):
    make()(TEXTS[:2])
    monkeypatch.setenv("SCINTERP_OFFLINE", "1")
    assert right(make()(TEXTS[:2]), TEXTS[:2]), "what is stored needs no network"
    with pytest.raises(ModelError, match="SCINTERP_OFFLINE"):
        make()(TEXTS)
    monkeypatch.delenv("SCINTERP_OFFLINE")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ModelError, match="set OPENAI_API_KEY"):
        OpenAIEncoder(folder=tmp_path)(TEXTS)


def everything_under(folder):
    return b"".join(p.read_bytes() + str(p).encode() for p in folder.rglob("*") if p.is_file())


def test_the_key_is_in_no_message_and_no_file(api, make, monkeypatch, tmp_path):
    make()(TEXTS)
    make(batch=True, dimensions=4)(TEXTS[:2])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-9876543210")
    with pytest.raises(ModelError, match="OPENAI_API_KEY was refused") as e:
        make()(["another"])
    assert "9876543210" not in str(e.value) + repr(e.value.__cause__) + repr(make()) + repr(vars(make())) and KEY.encode() not in everything_under(tmp_path)
    assert e.value.__suppress_context__
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    api.trouble = lambda r: error(400, f"bad header Authorization: Bearer {KEY} and {KEY}")
    with pytest.raises(ModelError) as e:
        make()(["another"])
    assert "0123456789" not in str(e.value)


def test_only_the_texts_leave(api, make):
    make()(TEXTS)
    assert all(set(r.json) == {"model", "input", "dimensions", "encoding_format"} for r in api.paths(EMBEDDINGS)) and {r.path for r in api.seen} == {EMBEDDINGS}


def test_an_address_with_a_password_is_refused(tmp_path):
    with pytest.raises(InputError, match="would end up in logs") as e:
        OpenAIEncoder(base_url="http://user:hunter2@localhost:1/v1", folder=tmp_path)
    assert "hunter2" not in str(e.value)


# ---- faults that pass


UNPAID = {"429": busy(), "429 and when": busy("0"), "429 and a date": busy("Sat, 21 Nov 2020 16:00:00 GMT"), "500": status(500), "503 page": body(b"<html>busy</html>"),
          "reset": reset(), "hang": hang(1.5), "another schema": None}


@pytest.mark.parametrize("fault", [k for k in UNPAID if UNPAID[k]])
def test_faults_that_cost_nothing(api, make, fault):
    api.faults[EMBEDDINGS] = [UNPAID[fault], UNPAID[fault]] if fault != "hang" else [UNPAID[fault]]
    assert right(make()(TEXTS)) and paid(api)


PAID = {"half a body": cut(100), "broken JSON": broken_json(), "another schema": other_schema(), "not an object": altered(lambda a: [1, 2])}


@pytest.mark.parametrize("fault", PAID)
def test_lost_answers_are_asked_for_again(api, make, fault):
    api.faults[EMBEDDINGS] = [PAID[fault]]
    assert right(make()(TEXTS)) and paid(api, TEXTS + TEXTS[:4]), "the four whose answer was lost, and no other"


ROWS = {"NaN": (nan(1), 1), "zeros": (zeros(2), 1), "a wrong width": (width(5, row=0), 1), "a missing index": (missing(1), 1), "an index twice": (twice(1), 2),
        "out of order": (out_of_order(), 0), "all of a wrong width": (width(5), 4)}


@pytest.mark.parametrize("fault", ROWS)
def test_the_good_rows_of_a_bad_answer_are_kept(api, make, fault):
    trouble, lost = ROWS[fault]
    api.faults[EMBEDDINGS] = [trouble]
    assert right(make()(TEXTS)) and len(sent(api)) == 20 + lost


def test_a_server_that_always_forgets_a_row_is_borne_while_it_gives_others(api, make):
    api.trouble = lambda r: missing(0) if len(r.json["input"]) > 1 else None
    assert right(make(retries=2)(TEXTS))


def test_one_text_that_never_gets_a_vector(api, make):
    def without(answer):
        texts = api.seen[-1].json["input"]
        answer["data"] = [row for row, text in zip(answer["data"], texts) if text != TEXTS[7]]
    api.trouble = lambda r: altered(without)
    with pytest.raises(ModelError, match="1 of 1 vectors"):
        make(retries=2)(TEXTS)
    assert len(make().store.read(map(text_key, TEXTS))) == 19, "the others are kept"


def test_a_width_that_changes_half_way(api, make):
    api.faults[EMBEDDINGS] = [lambda *a: a[0].send(*a[1:])] + [width(5)] * 9
    with pytest.raises(ModelError, match="4 of 4 vectors were missing, of a wrong width"):
        make("some-model", dimensions=None)(TEXTS)
    api.faults.clear()
    assert right(make("some-model", dimensions=None)(TEXTS), size=8)


def test_waiting_as_long_as_the_server_says(api, make):
    api.faults[EMBEDDINGS] = [busy("1")]
    began = time.monotonic()
    make()(TEXTS[:2])
    assert 1 <= time.monotonic() - began < 3
    api.faults[EMBEDDINGS] = [error(429, "slow down", "rate_limit", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="600ms")]
    began = time.monotonic()
    make()(TEXTS[2:4])
    assert .6 <= time.monotonic() - began < 2


def test_waiting_before_the_server_has_to_refuse(api, make):
    api.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"}
    began = time.monotonic()
    make()(TEXTS[:8])  # two requests
    assert time.monotonic() - began > .3
    api.headers = {"x-ratelimit-remaining-tokens": "1000000", "x-ratelimit-reset-tokens": "1h0m0s", "x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "1h0m0s"}
    began = time.monotonic()
    make()(TEXTS[8:])
    assert time.monotonic() - began < 2, "enough is left"


# ---- faults that do not


def test_a_server_that_asks_for_an_hour(api, make):
    api.faults[EMBEDDINGS] = [lambda *a: a[0].send(*a[1:]), busy("3600")]
    began = time.monotonic()
    with pytest.raises(ModelError, match="asks to wait 3600 s"):
        make()(TEXTS)
    assert time.monotonic() - began < 2
    assert right(make()(TEXTS)) and paid(api), "what had arrived was kept"


def test_tries_are_bounded(api, make):
    api.trouble = lambda r: status(500)
    with pytest.raises(ModelError, match="no usable answer in 4 tries .*HTTP 500"):
        make(retries=3)(TEXTS)
    assert len(api.seen) == 4


@pytest.mark.parametrize("fault, why", [(error(429, "You exceeded your current quota", "insufficient_quota"), "no credit is left"), (error(404, "The model does not exist"), "HTTP 404"),
                                        (error(403, "Country not supported"), "HTTP 403"), (error(400, "bad input"), "HTTP 400: .*bad input")])
def test_what_no_repeat_mends_ends_at_once(api, make, fault, why):
    api.faults[EMBEDDINGS] = [fault]
    with pytest.raises(ModelError, match=why):
        make()(TEXTS)
    assert len(api.seen) == 1


def test_a_server_that_dies_half_way(api, make):
    api.die_after = 2
    with pytest.raises(ModelError, match="no usable answer"):
        make(retries=2)(TEXTS)
    api.revive()
    assert right(make()(TEXTS)) and sorted(sent(api)) == sorted(TEXTS) and paid(api)


def test_no_server_at_all(tmp_path):
    with pytest.raises(ModelError, match="no usable answer in 2 tries"):
        OpenAIEncoder(base_url="http://127.0.0.1:9/v1", folder=tmp_path, backoff=.01, retries=1)(["a"])


# ---- processes


RUN = """
import sys
from scinterp.text.api_encoders import OpenAIEncoder
url, folder, n, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == 'batch'
encode = OpenAIEncoder('text-embedding-3-small', base_url=url, dimensions=16, folder=folder, inputs=4, poll=.05, batch=batch, backoff=.01)
v = encode([f'GENE{i}: protein number {i}' for i in range(n)])
print(v.shape, encode.requests)
"""


def start(api, folder, n=20, how="direct"):
    return subprocess.Popen([sys.executable, "-c", RUN, api.base_url, str(folder), str(n), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, process=None, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None), process.communicate() if process else "too late"
        time.sleep(.01)


@pytest.mark.slow(6)
def test_killed_and_resumed(api, make, tmp_path):
    api.trouble = lambda r: hang(30) if len(api.seen) == 4 else None
    run = start(api, tmp_path)
    until(lambda: len(api.seen) == 4, run)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    api.trouble = None
    assert right(make()(TEXTS)) and paid(api) and len(sent(api)) == 24, "the four that were on their way were sent again"


@pytest.mark.slow(9)
def test_two_processes_share_the_work(api, tmp_path, make):
    def slow(site, handler, path):
        time.sleep(.05)
        site.send(handler, path)
    api.trouble = lambda r: slow
    runs = [start(api, tmp_path, 80) for _ in range(2)]
    said = [r.communicate(timeout=60) for r in runs]
    assert [r.returncode for r in runs] == [0, 0], said
    texts = [f"GENE{i}: protein number {i}" for i in range(80)]
    assert sorted(sent(api)) == sorted(texts) and paid(api, texts) and right(make()(texts), texts)
    assert sum(int(out.split()[-1]) for out, _ in said) == 20


# ---- the store


def test_a_file_cut_at_any_byte_is_dropped_and_its_texts_asked_for_again(tmp_path):
    store = VectorStore(tmp_path)
    keys = [text_key(t) for t in "ab"]
    store.put(dict(zip(keys, [[1., 2.], [3., 4.]])))
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    for n in range(len(whole)):
        for content in (whole[:n], whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1:]):
            file.write_bytes(content)
            with pytest.warns(UserWarning, match="altered or cut short"):
                assert store.read(keys) == {} and not file.exists()
    file.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [v.tolist() for v in store.read(keys).values()] == [[1, 2], [3, 4]]


def test_a_damaged_store_is_mended_by_the_next_run(api, make):
    make()(TEXTS)
    file = next(make().store.folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="altered"):
        assert right(make()(TEXTS))
    assert len(sent(api)) == 24 and right(make()(TEXTS)) and len(sent(api)) == 24


@settings(database=None, deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=5), st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3)), max_size=8, unique_by=lambda x: x[0]))
def test_the_store_gives_back_what_it_was_given(tmp_path_factory, rows):
    store = VectorStore(tmp_path_factory.mktemp("s"))
    put = {text_key(t): np.float32(v) for t, v in rows}
    store.put(dict(list(put.items())[:4]))
    store.put(dict(list(put.items())[2:]))
    got = store.read(put)
    assert got.keys() == put.keys() and all((got[k] == put[k]).all() for k in put)


def test_a_file_that_is_being_written_is_left_alone(tmp_path):
    store = VectorStore(tmp_path)
    half = tmp_path / f".{'0' * 64}.safetensors.abc.safetensors"
    half.write_bytes(b"half")
    assert store.read([text_key("a")]) == {} and store.width() is None and half.exists()


def test_the_cache_keeps_no_vector_a_second_time(api, make, tmp_path, monkeypatch):
    monkeypatch.setenv("SCINTERP_CACHE", str(tmp_path / "cache"))
    long = "The receptor binds its ligand. " * 10
    encode = make(max_tokens=40)
    vectors, truncated = encode_once([*TEXTS, long, long], encode)
    assert right(vectors[:20]) and truncated == 2, "the encoder knows how many it cut"
    kept = [k for file in tmp_path.rglob("*.safetensors") for k in map(bytes, load_file(file)["keys"])]
    assert len(kept) == len(set(kept)) >= 20 + 2 and not list((tmp_path / "cache").rglob("*.safetensors"))
    before = len(api.seen)
    assert (encode_once([*TEXTS, long, long], make(max_tokens=40))[0] == vectors).all() and len(api.seen) == before


@pytest.mark.slow(6)
def test_a_warm_store_answers_20_000_texts_quickly(tmp_path):
    encode = OpenAIEncoder(base_url="http://127.0.0.1:9/v1", dimensions=384, folder=tmp_path)
    texts = [f"GENE{i}: " + "a description of what this gene does " * 8 for i in range(20_000)]
    vectors = np.random.default_rng(0).standard_normal((20_000, 384)).astype(np.float32)
    for i in range(0, 20_000, 2000):
        encode.store.put({text_key(t): v for t, v in zip(texts[i:i + 2000], vectors[i:i + 2000])})
    began = time.monotonic()
    assert (encode(texts) == vectors).all()
    assert time.monotonic() - began < 3


# ---- money


def test_a_dry_run_sends_nothing_and_counts_what_is_missing(api, make):
    make()(TEXTS[:5])
    n = len(api.seen)
    plan = make(dry_run=True)(TEXTS)
    assert plan.texts == 15 and plan == estimate(TEXTS[5:], SMALL) and len(api.seen) == n
    assert make(dry_run=True)(TEXTS[:5]).money == (0, 0)
    with pytest.raises(InputError, match="no price is known"):
        make("some-model", dry_run=True)(TEXTS)


def test_a_budget_stops_before_it_is_exceeded(api, make):
    high = make(dry_run=True)(TEXTS).money[1]
    with pytest.raises(InputError, match="the budget is"):
        make(budget=high * .9)(TEXTS)
    assert not api.seen
    encode = make(budget=high)
    assert right(encode(TEXTS)) and encode.spent == pytest.approx(api.usage["prompt"] * .02 / 1e6) and encode.tokens == api.usage["prompt"]
    with pytest.raises(InputError, match="no price is known"):
        make("some-model", budget=1)


def test_a_budget_counts_what_repeats_cost(api, make):
    "Answers that are lost but paid for: it stops, though each request alone would fit"
    encode = make(budget=make(dry_run=True)(TEXTS).money[1] * 1.02, retries=100)
    api.trouble = lambda r: broken_json()
    with pytest.raises(InputError, match="the budget is"):
        encode(TEXTS)
    assert api.usage["prompt"] * .02 / 1e6 <= encode.budget


@pytest.mark.parametrize("fault", [lambda: cut(20), lambda: hang(3)])
def test_a_budget_counts_answers_that_never_arrive(api, make, fault):
    "A line that breaks, or stays silent, after the work was done"
    plan = make(dry_run=True)(TEXTS[:4])
    encode = make(budget=plan.money[1] * 2.5, retries=100, timeout=.2)
    api.trouble = lambda r: fault()
    with pytest.raises(InputError, match="the budget is"):
        encode(TEXTS[:4])
    assert len(api.seen) == 2 and encode.spent == pytest.approx(2 * plan.money[1])


def test_a_budget_in_tokens(api, make):
    "Also where no price is known"
    high = make(dry_run=True)(TEXTS).tokens[1]
    with pytest.raises(InputError, match="the budget is"):
        make("some-model", budget=f"{high - 1} tokens")(TEXTS)
    assert not api.seen and right(make("some-model", budget=f"{high} tokens")(TEXTS))


@pytest.mark.parametrize("budget", ["5 euros", "tokens", -1, float("nan"), True, [1], {}])
def test_budgets_that_cannot_be_used(make, budget):
    with pytest.raises(InputError, match="not understood"):
        make(budget=budget)


@pytest.mark.parametrize("url", ["http://localhost:port/v1", "http://localhost:99999/v1", "http://[::1/v1"])
def test_addresses_that_are_none(make, url):
    with pytest.raises(InputError, match="not an address"):
        make(base_url=url)


# ---- the Batch API


def test_a_batch(api, make):
    encode = make(batch=True)
    make()(TEXTS[:3])
    assert right(encode(TEXTS)) and paid(api), "what was stored is not in the batch; lines come back in another order"
    assert [r.method for r in api.paths(FILES)] == ["POST"] and len(api.batches) == 1 and api.batches["batch_1"]["endpoint"] == "/v1/embeddings"
    assert encode.spent == pytest.approx(sum(map(api.count, TEXTS[3:])) * .01 / 1e6) and not encode._notes()
    assert right(make()(TEXTS)) and len(api.batches) == 1


def test_lines_that_fail_or_are_missing(api, make):
    def line(i, answer):
        if i == 1:
            return None
        if i == 2:
            return answer | {"response": {"status_code": 500, "request_id": "x", "body": {"error": {"message": f"no luck {KEY}"}}}}
        if i == 3:
            answer["response"]["body"]["data"][0]["embedding"] = "AAAA"
        if i == 4:
            return answer | {"custom_id": "somebody else's"}
        return answer
    api.batch_line = line
    with pytest.raises(ModelError, match="ended as completed with 4 of 20 texts unanswered") as e:
        make(batch=True)(TEXTS)
    assert KEY not in str(e.value)
    api.batch_line = None
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 2 and len(api.store[api.batches["batch_2"]["input_file_id"]]["content"].splitlines()) == 4


@pytest.mark.parametrize("end", ["failed", "expired", "cancelled"])
def test_batches_that_end_badly(api, make, end):
    api.batch_end, api.batch_line = end, lambda i, answer: answer if i < 5 else None
    with pytest.raises(ModelError, match=f"ended as {end} with {20 if end == 'failed' else 15} of 20"):
        make(batch=True)(TEXTS)
    api.batch_end, api.batch_line = "completed", None
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 2


def test_jobs_of_limited_size(api, make, monkeypatch):
    monkeypatch.setattr(api_encoders, "BATCH_INPUTS", 8)
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 3 and paid(api)


def test_faults_around_a_batch(api, make):
    api.faults = {FILES: [busy(), cut(5)], BATCHES: [status(500)], f"{BATCHES}/batch_1": [reset(), busy("0")], f"{FILES}/file-3/content": [cut(50)]}
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 1 and paid(api)


def test_a_batch_whose_birth_was_not_heard_of_is_found(api, make):
    api.faults[BATCHES] = [cut(5)]  # begun, but the answer was lost
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 1 and paid(api)


@pytest.mark.slow(6)
def test_killed_between_upload_and_batch(api, make, tmp_path):
    def begun_then_silent(site, handler, path):
        site.route(handler.request_seen)
        time.sleep(30)
    api.faults[BATCHES] = [begun_then_silent]
    run = start(api, tmp_path, how="batch")
    until(lambda: len(api.batches) == 1, run)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 1 and paid(api)


@pytest.mark.slow(6)
def test_killed_while_waiting_for_a_batch(api, make, tmp_path):
    api.batch_steps = ["in_progress"] * 10_000
    run = start(api, tmp_path, how="batch")
    until(lambda: [r for r in api.seen if r.path.startswith(f"{BATCHES}/")], run)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    api.batches["batch_1"]["steps"] = []
    assert right(make(batch=True)(TEXTS[:10]), TEXTS[:10]) and len(api.batches) == 1 and paid(api), "the same batch, though fewer texts are wanted now"
    assert right(make()(TEXTS)) and paid(api)


@pytest.mark.slow(9)
def test_two_processes_wait_for_one_batch(api, make, tmp_path):
    api.batch_steps = ["in_progress"] * 40
    runs = [start(api, tmp_path, how="batch") for _ in range(2)]
    said = [r.communicate(timeout=60) for r in runs]
    assert [r.returncode for r in runs] == [0, 0], said
    assert len(api.batches) == 1 and paid(api) and right(make()(TEXTS))


def test_a_batch_that_this_key_does_not_see(api, make):
    "Another key is told 404; the batch is still there, and is not paid for twice"
    encode = make(batch=True)
    api.faults[f"{BATCHES}/batch_1"] = [error(404, "No batch found")]
    with pytest.raises(ModelError, match="HTTP 404.*not visible to this key: use the key it was begun with, or delete .*json to pay again"):
        encode(TEXTS)
    assert len(encode._notes()) == 1 and right(make(batch=True)(TEXTS)) and len(api.batches) == 1 and paid(api)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_batch_that_this_key_may_not_begin(api, make, code):
    encode = make(batch=True)
    api.faults[BATCHES] = [cut(5), error(code, "No such file, or not for you")]  # begun, but the answer was lost; then the key was changed
    with pytest.raises(ModelError, match=f"HTTP {code}.*not visible to this key"):
        encode(TEXTS)
    assert len(encode._notes()) == 1 and right(make(batch=True)(TEXTS)) and len(api.batches) == 1 and paid(api)


def test_a_file_that_cannot_be_a_batch_is_forgotten(api, make):
    encode = make(batch=True)
    api.faults[BATCHES] = [error(400, "Invalid input file: it is empty")]
    with pytest.raises(ModelError, match="HTTP 400"):
        encode(TEXTS)
    assert not encode._notes() and right(make(batch=True)(TEXTS)) and len(api.batches) == 1


@pytest.mark.parametrize("left", ["", '{"file": "file', "{}", "[1]"])
def test_a_damaged_note_is_written_again(api, make, left):
    encode = make(batch=True)
    api.faults[f"{BATCHES}/batch_1"] = [error(404, "No batch found")]
    with pytest.raises(ModelError):
        encode(TEXTS)
    note, = encode._notes()
    note.write_text(left)
    assert right(make(batch=True)(TEXTS)) and len(api.batches) == 1 and paid(api) and not note.exists()


def test_a_damaged_note_that_nobody_knows_is_named(api, make):
    encode = make(batch=True)
    note = encode.store.folder / "jobs" / "0123456789abcdef.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"file":')
    with pytest.raises(ModelError, match="0123456789abcdef.json is damaged.*delete it"):
        encode(TEXTS)
    note.unlink()
    assert right(encode(TEXTS)) and paid(api)


def test_every_answered_line_of_a_batch_is_charged(api, make):
    "Also one that cannot be used; and by its upper count where the server does not say"
    def line(i, answer):
        if i == 0:
            answer["response"]["body"]["data"][0]["embedding"] = "AAAA"
        if i == 1:
            del answer["response"]["body"]["usage"]
        return answer
    api.batch_line = line
    encode = make(batch=True)
    with pytest.raises(ModelError, match="1 of 20 texts unanswered"):
        encode(TEXTS)
    high = int(count_tokens(TEXTS[1]).high[0])
    assert encode.tokens == sum(map(api.count, TEXTS)) - api.count(TEXTS[1]) + high


def test_a_budget_and_a_batch(api, make):
    half = make(dry_run=True)(TEXTS).batch_money[1]
    with pytest.raises(InputError, match="the budget is"):
        make(batch=True, budget=half * .9)(TEXTS)
    assert not api.seen and right(make(batch=True, budget=half)(TEXTS))
