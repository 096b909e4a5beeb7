"""An OpenAI-compatible server on this machine: chat, embeddings, files, batches; it counts, records, and misbehaves where told."""
import base64
import email
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message

import numpy as np
from loopback import Site, body, hang, loopback, status  # noqa: F401  faults that any web server has

CHAT, EMBEDDINGS, FILES, BATCHES = "v1/chat/completions", "v1/embeddings", "v1/files", "v1/batches"
DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
MOST_INPUTS, MOST_TOKENS, LONGEST_INPUT = 2048, 300_000, 8192


@dataclass
class Request:
    "What a client sent"
    method: str
    path: str
    headers: Message  # upper or lower case, as in HTTP
    raw: bytes
    number: int
    json: dict = field(default_factory=dict)

    @property
    def text(self):
        "The last message of a chat request"
        return self.json["messages"][-1]["content"]


class Refused(Exception):
    "A request that the real server would not take"

    def __init__(self, code, message, kind="invalid_request_error"):
        super().__init__(message)
        self.code, self.kind = code, kind


class Api(Site):
    """Answers as the OpenAI API does.

    `faults[path]`: functions that answer in place of the server, one a request, until used up (as in `loopback`).
    `trouble(request)`: the fault for this very request, or None. `seen`: every `Request`.
    `reply(request)`: what the chat model says (text, or a value that becomes JSON). `count(text)`: tokens of a text.
    `usage`: tokens that were paid for. `key`: the only one let in. `die_after`: requests after which the server is gone.
    """

    def __init__(self, reply=None, key=None, count=None, width=None):
        super().__init__()
        self.seen, self.usage, self.headers = [], {"requests": 0, "prompt": 0, "completion": 0}, {}
        self.reply, self.key, self.width = reply or echo, key, width
        self.count = count or (lambda text: -(-len(text) // 4))
        self.trouble, self.die_after, self.json_schema, self.lock = None, None, True, threading.RLock()
        self.store, self.batches = {}, {}  # files and batches by id
        self.batch_steps, self.batch_end, self.batch_line = ["validating", "in_progress"], "completed", None

    @property
    def base_url(self):
        return self.url("v1")

    def paths(self, path=None):
        "Requests so far, or those for one path"
        return [r for r in self.seen if path in (None, r.path)]

    # ---- the life of a request

    def answer(self, handler):
        raw = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))  # all of it, whatever follows
        path = handler.path.lstrip("/").split("?")[0]
        with self.lock:
            if self.die_after is not None and len(self.seen) >= self.die_after:
                return self.die(handler)
            request = Request(handler.command, path, handler.headers, raw, len(self.seen))
            if raw and (handler.headers.get("Content-Type") or "").startswith("application/json"):
                request.json = json.loads(raw)
            self.seen.append(request)
            handler.request_seen = request
            fault = self.faults[path].pop(0) if self.faults.get(path) else self.trouble(request) if self.trouble else None
        if fault:
            return fault(self, handler, path)
        self.send(handler, path)

    def send(self, handler, path, cut=None, alter=None):
        "The right answer; with `alter`, changed by that function; with `cut`, only so many bytes of what was announced"
        try:
            self.check_key(handler)
            content = self.route(handler.request_seen)
        except Refused as e:
            return error(e.code, str(e), e.kind)(self, handler, path)
        except Exception as e:  # a fault of ours, which no test should take for one that it asked for
            return error(400, f"the test server failed: {e!r}")(self, handler, path)
        if not isinstance(content, bytes):
            content = alter(content) if alter else content
            content = content if isinstance(content, bytes) else json.dumps(content).encode()  # NaN as Python writes it
        handler.send_response(200)
        for key, value in {"Content-Type": "application/json", "x-request-id": f"req_{handler.request_seen.number}", **self.headers}.items():
            handler.send_header(key, str(value))
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:cut])

    def check_key(self, handler):
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            raise Refused(401, f"Incorrect API key provided: {handler.headers.get('Authorization', '').removeprefix('Bearer ')}.", "invalid_api_key")

    def route(self, request):
        if request.path == CHAT:
            return self.chat(request)
        if request.path == EMBEDDINGS:
            return self.embeddings(request)
        if request.path.startswith(FILES):
            return self.file(request)
        if request.path.startswith(BATCHES):
            return self.batch(request)
        raise Refused(404, f"Unknown request URL: {request.method} /{request.path}")

    def paid(self, prompt, completion=0):
        with self.lock:
            self.usage["requests"] += 1
            self.usage["prompt"] += prompt
            self.usage["completion"] += completion
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def die(self, handler):
        "Nobody listens any more, and the line is cut"
        threading.Thread(target=self.stop, daemon=True).start()
        reset()(self, handler, "")

    def revive(self):
        "Listen again, on the same port"
        self.stop()
        self.die_after = None
        self.start(self.handler, self.port)

    # ---- chat and embeddings

    def chat(self, request):
        ask = request.json
        if ask.get("response_format", {}).get("type") == "json_schema" and not self.json_schema:
            raise Refused(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.")
        said = self.reply(request)
        said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        usage = self.paid(sum(self.count(m["content"]) for m in ask["messages"]), self.count(said))
        message = {"role": "assistant", "content": said, "refusal": None}
        return {"id": f"chatcmpl-{request.number}", "object": "chat.completion", "created": 1700000000, "model": f"{ask['model']}-2025-01-01",
                "system_fingerprint": "fp_loopback", "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}], "usage": usage}

    def embeddings(self, request):
        ask = request.json
        texts = ask["input"]
        texts = [texts] if isinstance(texts, str) or (texts and isinstance(texts[0], int)) else texts
        tokens = [self.count(t) if isinstance(t, str) else len(t) for t in texts]
        if not texts or not all(tokens):
            raise Refused(400, "'$.input' is invalid: an input must not be empty.")
        if len(texts) > MOST_INPUTS:
            raise Refused(400, f"'$.input' is invalid: array too long, at most {MOST_INPUTS} inputs.")
        if max(tokens) > LONGEST_INPUT:
            raise Refused(400, f"This model's maximum context length is {LONGEST_INPUT} tokens, however you requested {max(tokens)} tokens.")
        if sum(tokens) > MOST_TOKENS:
            raise Refused(400, f"Requested {sum(tokens)} tokens, max {MOST_TOKENS} tokens per request.", "max_tokens_per_request")
        width = ask.get("dimensions") or self.width or DIMENSIONS.get(ask["model"], 8)
        vectors = [vector(t, width) for t in texts]
        if ask.get("encoding_format") == "base64":
            vectors = [base64.b64encode(v.tobytes()).decode() for v in vectors]
        else:
            vectors = [v.tolist() for v in vectors]
        usage = self.paid(sum(tokens))
        usage = {k: usage[k] for k in ("prompt_tokens", "total_tokens")}
        return {"object": "list", "model": ask["model"], "usage": usage,
                "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]}

    # ---- files and batches

    def keep(self, name, content, purpose):
        with self.lock:
            id = f"file-{len(self.store) + 1}"
            self.store[id] = dict(id=id, object="file", bytes=len(content), created_at=1700000000, filename=name, purpose=purpose, status="processed", content=content)
        return self.about(id)

    def about(self, id):
        if id not in self.store:
            raise Refused(404, f"No such File object: {id}")
        return {k: v for k, v in self.store[id].items() if k != "content"}

    def file(self, request):
        id, _, rest = request.path.removeprefix(FILES).strip("/").partition("/")
        if request.method == "POST":
            parts = email.message_from_bytes(b"Content-Type: " + request.headers["Content-Type"].encode() + b"\r\n\r\n" + request.raw).get_payload()
            got = {p.get_param("name", header="content-disposition"): p for p in parts}
            return self.keep(got["file"].get_filename(), got["file"].get_payload(decode=True), got["purpose"].get_payload())
        if not id:
            return {"object": "list", "data": [self.about(i) for i in self.store], "has_more": False}
        about = self.about(id)
        if request.method == "DELETE":
            del self.store[id]
            return {"id": id, "object": "file", "deleted": True}
        return self.store[id]["content"] if rest == "content" else about

    def batch(self, request):
        "A batch takes one step of `batch_steps` each time that it is looked at, then ends as `batch_end` says"
        id, _, rest = request.path.removeprefix(BATCHES).strip("/").partition("/")
        if request.method == "POST" and not id:
            return self.new_batch(request.json)
        if not id:
            return {"object": "list", "data": [self.batches[i] for i in reversed(self.batches)], "has_more": False}
        if id not in self.batches:
            raise Refused(404, f"No batch found with id '{id}'.")
        with self.lock:
            now = self.batches[id]
            if rest == "cancel":
                now["status"] = "cancelled"
            elif now["steps"]:
                now["status"] = now["steps"].pop(0)
            elif now["status"] not in ("completed", "failed", "expired", "cancelled"):
                self.finish(now)
        return {k: v for k, v in now.items() if k != "steps"}

    def new_batch(self, ask):
        self.about(ask["input_file_id"])
        id = f"batch_{len(self.batches) + 1}"
        self.batches[id] = dict(id=id, object="batch", endpoint=ask["endpoint"], input_file_id=ask["input_file_id"], completion_window=ask["completion_window"],
                                status="validating", created_at=1700000000, metadata=ask.get("metadata"), output_file_id=None, error_file_id=None, errors=None,
                                request_counts=dict(total=0, completed=0, failed=0), steps=list(self.batch_steps))
        return {k: v for k, v in self.batches[id].items() if k != "steps"}

    def finish(self, batch):
        "Answer every line, the last first, as nobody promises an order; `batch_line(i, answer)` may change an answer or lose it (None)"
        good, bad = [], []
        lines = [json.loads(line) for line in self.store[batch["input_file_id"]]["content"].decode().splitlines()]
        for i, line in enumerate(lines):
            asked = Request("POST", line["url"].lstrip("/"), Message(), b"", 10**6 + i, line["body"])
            try:
                code, content = 200, self.route(asked)
            except Refused as e:
                code, content = e.code, {"error": {"message": str(e), "type": e.kind}}
            answer = {"id": f"batch_req_{i}", "custom_id": line["custom_id"], "response": {"status_code": code, "request_id": f"req_{i}", "body": content}, "error": None}
            answer = self.batch_line(i, answer) if self.batch_line else answer
            if answer:
                (good if answer["response"] and answer["response"]["status_code"] == 200 else bad).append(answer)
        batch.update(status=self.batch_end, request_counts=dict(total=len(lines), completed=len(good), failed=len(bad)))
        if batch["status"] == "failed":
            return batch.update(errors={"object": "list", "data": [{"code": "invalid", "message": "the batch failed", "line": 1}]})
        for key, some in (("output_file_id", good), ("error_file_id", bad)):
            if some:
                batch[key] = self.keep(f"{batch['id']}.jsonl", "".join(json.dumps(a) + "\n" for a in some[::-1]).encode(), "batch_output")["id"]


def echo(request):
    "A model that says what it was told"
    return f"You said: {request.text}"


def vector(text, width):
    "The unit vector that this server gives a text; float32"
    seed = int.from_bytes(hashlib.sha256(json.dumps(text).encode()).digest()[:8], "big")
    v = np.random.default_rng(seed).standard_normal(width)
    return (v / np.linalg.norm(v)).astype(np.float32)


# ---- faults: `status`, `body`, `hang` of loopback, and these


def error(code, message="something is wrong", kind="server_error", **headers):
    "An error as the API words it"
    content = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": kind}}).encode()

    def fault(site, handler, path):
        handler.send_response(code)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            handler.send_header(key, str(value))
        handler.end_headers()
        handler.wfile.write(content)
    return fault


def busy(after=None):
    "429, with or without Retry-After"
    return error(429, "Rate limit reached", "rate_limit_exceeded", **({} if after is None else {"Retry_After": after}))


def reset():
    "Reset the connection without a word"
    def fault(site, handler, path):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        handler.rfile.close()
        handler.wfile.close()
        handler.connection.close()
        handler.wfile = _Nowhere()
    return fault


class _Nowhere:
    "Takes what the handler flushes after its line is gone"
    closed = True

    def flush(self):
        pass

    def close(self):
        pass


def altered(change):
    "The right answer (a dict, paid for), changed by a function that edits it or returns another"
    def alter(answer):
        other = change(answer)
        return answer if other is None else other
    return lambda site, handler, path: site.send(handler, path, alter=alter)


def broken_json():
    "The right answer without its end, announced as whole"
    return altered(lambda answer: json.dumps(answer).encode()[:-20])


def says(text):
    "A chat model that says something else"
    text = text if isinstance(text, str) else json.dumps(text)
    return altered(lambda answer: answer["choices"][0]["message"].update(content=text))


def resays(change):
    "A chat model whose JSON is changed by a function of the value: ids missing, others added, another order"
    def edit(answer):
        message = answer["choices"][0]["message"]
        message["content"] = json.dumps(change(json.loads(message["content"])))
    return altered(edit)


def refusal(text="I cannot help with that."):
    "A chat model that will not"
    return altered(lambda answer: answer["choices"][0]["message"].update(content=None, refusal=text))


def stopped_short(n=20):
    "A chat model that ran into its limit of tokens"
    def edit(answer):
        answer["choices"][0]["finish_reason"] = "length"
        message = answer["choices"][0]["message"]
        message["content"] = message["content"][:n]
    return altered(edit)


def _vectors(change):
    "Edit the vectors of an answer, in either encoding"
    def edit(answer):
        for i, row in enumerate(answer["data"]):
            packed = isinstance(row["embedding"], str)
            v = np.frombuffer(base64.b64decode(row["embedding"]), np.float32) if packed else np.array(row["embedding"], np.float32)
            v = np.asarray(change(i, v.copy()), np.float32)
            row["embedding"] = base64.b64encode(v.tobytes()).decode() if packed else v.tolist()
    return altered(edit)


def nan(row=0):
    "A NaN in one vector"
    return _vectors(lambda i, v: np.where(np.arange(len(v)) == 1, np.nan, v) if i == row else v)


def width(n, row=None):
    "Vectors (or one of them) of another width"
    return _vectors(lambda i, v: np.resize(v, n) if row in (None, i) else v)


def zeros(row=0):
    "A vector of zeros"
    return _vectors(lambda i, v: v * 0 if i == row else v)


def out_of_order():
    "Embeddings in another order, each with its right index"
    return altered(lambda answer: answer["data"].reverse())


def missing(row=0):
    "One embedding fewer than was asked for"
    return altered(lambda answer: answer["data"].pop(row) and None)


def twice(row=0):
    "One index twice, another not at all"
    return altered(lambda answer: answer["data"][row - 1].update(index=answer["data"][row]["index"]))


def other_schema():
    "JSON, but not what was announced"
    return altered(lambda answer: {"result": "ok"})


def tokens_like_words(text):
    "A count for tests that want one which is not a quarter of the letters"
    return len(re.findall(r"\w+|[^\w\s]", text))


@contextmanager
def api_server(**options):
    "A running `Api`"
    with loopback(Api(**options)) as api:
        yield api
