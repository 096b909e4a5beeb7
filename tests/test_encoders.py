"""Encoders: batches that hold every text once, and models of Hugging Face from a server on this machine, which is also down, closed or missing."""
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scinterp.text.encoders import TfidfEncoder, TransformerEncoder, _pooled, encoder, minilm_path, token_batches

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
REFUSED = {"org/gated": (403, "GatedRepo"), "org/none": (401, "RepoNotFound"), "org/norev": (404, "RevisionNotFound"), "org/down": (501, ""), "org/forbidden": (403, "")}


class Hub(BaseHTTPRequestHandler):
    "As much of Hugging Face as one model needs: the packaged MiniLM"

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head=False):
        path = self.path.split("?")[0].lstrip("/")
        self.server.asked.append(path)
        refused = next((v for k, v in REFUSED.items() if k in path), None)
        if refused:
            return self.reply(refused[0], b"{}", {"X-Error-Code": refused[1]} if refused[1] else {})
        if path.startswith(f"api/models/{MODEL}/revision/"):
            return self.reply(200, json.dumps(dict(id=MODEL, sha=COMMIT, siblings=[])).encode())
        files = {p.relative_to(minilm_path()).as_posix(): p for p in minilm_path().rglob("*") if p.is_file()}
        files["onnx/config.json"] = files["pytorch_model.bin"] = files["config.json"]  # never wanted
        if path.startswith(f"api/models/{MODEL}/tree/"):
            tree = [dict(type="file", path=k, size=p.stat().st_size, oid=sha1(p)) for k, p in files.items()]
            return self.reply(200, json.dumps(tree).encode())
        name = path.removeprefix(f"{MODEL}/resolve/{COMMIT}/")
        if name not in files:
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        self.reply(200, files[name].read_bytes(), {"ETag": f'"{sha1(files[name])}"', "X-Repo-Commit": COMMIT}, head)

    def reply(self, code, body, headers=(), head=False):
        self.send_response(code)
        for k, v in {"Content-Type": "application/json", "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(k, v)
        self.end_headers()
        if not head and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def sha1(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()  # by content: two files of one name are two


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def python(code, port, folder, **env):
    "Run `code` where Hugging Face is the server on `port` and its cache is in `folder`"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SCINTERP_OFFLINE", "TRANSFORMERS_"))}
    ours = dict(HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(folder), NO_PROXY="127.0.0.1", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=kept | ours | env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


ASK = """
from scinterp.core import ModelError
from scinterp.text.encoders import encoder
for name in {names}:
    try: encoder('hf:' + name)
    except ModelError as e: print(e)
"""

ENCODE = f"""
import numpy as np
from scinterp.text.encoders import encoder
encode = encoder('hf:{MODEL}@main', precision='fp32', device='cpu')
print(encode.name, encode.revision)
print(np.abs(encode(['CD79A', 'a B cell']) - encoder('minilm', precision='fp32', device='cpu')(['CD79A', 'a B cell'])).max())
"""


def test_each_refusal_says_what_to_do(hub, tmp_path):
    said = python(ASK.format(names=[f"{m}@{COMMIT}" for m in REFUSED]), hub.server_port, tmp_path)
    assert len(said) == len(REFUSED), said
    for sentence, words in zip(said, ["is gated: accept its terms", "shows no model org/none", "has no revision", "try again, or use `hf download org/down", "refuses org/forbidden (403): accept its terms"]):
        assert words in sentence, said


@pytest.mark.slow(25)
def test_no_network_and_no_copy(tmp_path):
    ask = ASK.format(names=[f"{MODEL}@{COMMIT}"])
    assert "check the connection and try again" in python(ask, 9, tmp_path)[0]
    assert "SCINTERP_OFFLINE forbids the network" in python(ask, 9, tmp_path, SCINTERP_OFFLINE="1")[0]


@pytest.mark.slow(20)
def test_fetched_once_and_then_used_offline(hub, tmp_path):
    said = python(ENCODE, hub.server_port, tmp_path)
    assert said[0] == f"hf:{MODEL}@main {COMMIT[:12]}-mean-unit-256-average-fp32" and float(said[1]) < 1e-6
    assert any(p.endswith("model.safetensors") for p in hub.asked)
    assert not any("onnx/config.json" in p or p.endswith(".bin") for p in hub.asked)
    before = len(hub.asked)
    assert python(ENCODE, hub.server_port, tmp_path, SCINTERP_OFFLINE="1") == said
    assert len(hub.asked) == before
    weights = next(tmp_path.rglob("model.safetensors"))
    weights.unlink()  # a download that broke off
    ask = ASK.format(names=[f"{MODEL}@{COMMIT}"])
    assert "SCINTERP_OFFLINE forbids the network" in python(ask, 9, tmp_path, SCINTERP_OFFLINE="1")[0]


@settings(database=None, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 600))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths, int)
    batches = list(token_batches(lengths, budget))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= budget for b in batches)
    assert all(a.size and lengths[a].min() >= lengths[b].max() for a, b in zip(batches, batches[1:]))


@settings(database=None, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 3), st.randoms(use_true_random=False))
def test_padding_is_never_pooled(lengths, padding, random):
    import torch
    hidden = torch.tensor([[[random.random()] for _ in range(max(lengths) + padding)] for _ in lengths], dtype=torch.float64)
    mask = torch.tensor([[int(i < n) for i in range(hidden.shape[1])] for n in lengths])
    for how, alone in (("mean", lambda h: h.mean()), ("cls", lambda h: h[0, 0]), ("last", lambda h: h[-1, 0])):
        expected = torch.stack([alone(h[:n]) for h, n in zip(hidden, lengths)])
        assert torch.allclose(_pooled(hidden, mask, how)[:, 0], expected)


def test_order_and_repeats_do_not_matter():
    encode = encoder("minilm", precision="fp32", device="cpu")
    texts = ["CD79A", "antigen receptor of B lymphocytes " * 20, "ATP synthase", "CD79A", "antigen receptor of B lymphocytes " * 80]
    vectors = encode(texts)
    assert encode.truncated == 1
    np.testing.assert_allclose(encode(texts[::-1])[::-1], vectors, atol=1e-6)
    assert (vectors[0] == vectors[3]).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_changed_file_changes_the_revision(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    first = TransformerEncoder(tmp_path, pooling="cls").revision
    (tmp_path / "tokenizer.json").write_text("{}")
    assert TransformerEncoder(tmp_path, pooling="cls").revision != first


def test_tfidf_is_the_same_each_time():
    texts = ["B cell receptor", "T cell receptor", "ATP synthase", "ribosomal protein"]
    assert (TfidfEncoder()(texts) == TfidfEncoder()(texts)).all()


def test_openai_comes_by_name(monkeypatch):
    api = pytest.importorskip("scinterp.text.api_encoders")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert isinstance(encoder("openai:text-embedding-3-small"), api.OpenAIEncoder)
