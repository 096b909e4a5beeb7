"""A web server on this machine that gives out files as public servers do, and misbehaves where a test says so."""
import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    "`files` by path; `faults` by path: functions that answer in place of the server, one a request, until used up"

    def __init__(self):
        self.files, self.faults, self.requests = {}, {}, []
        self.ranges, self.pace, self.tags = True, None, True

    def start(self, handler, port=0):
        "Listen, on a free port or on the one of before"
        self.server, self.handler = ThreadingHTTPServer(("127.0.0.1", port), handler), handler
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # a client that hangs up is no error of ours
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}/{path}"

    def asked(self, path):
        "`Range` headers of the requests for `path`, None where there was none"
        return [r for p, r in self.requests if p == path]

    def answer(self, handler):
        path = handler.path.lstrip("/").split("?")[0]
        self.requests.append((path, handler.headers.get("Range")))
        if self.faults.get(path):
            return self.faults[path].pop(0)(self, handler, path)
        if path not in self.files:
            return handler.send_error(404)
        self.send(handler, path)

    def send(self, handler, path, cut=None):
        "The file or the part asked for; with `cut`, only so many bytes of what was announced"
        body, tag, start = self.files[path], etag(self.files[path]), 0
        asked = handler.headers.get("Range")
        if asked and self.ranges and handler.headers.get("If-Range") in (None, tag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                return handler.end_headers()
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.tags:
            handler.send_header("ETag", tag)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        rest = body[start:][:cut]
        for i in range(0, len(rest), 2**14):
            handler.wfile.write(rest[i:i + 2**14])
            if self.pace:
                time.sleep(self.pace)


def etag(body):
    return f'"{hashlib.md5(body).hexdigest()}"'


def cut(n):
    "Announce the whole, send `n` bytes and hang up"
    def fault(site, handler, path):
        site.send(handler, path, cut=n)
        handler.close_connection = True
    return fault


def status(code, **headers):
    "Answer with a status code"
    def fault(site, handler, path):
        handler.send_response(code)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
    return fault


def body(content, **headers):
    "Answer with other bytes"
    def fault(site, handler, path):
        handler.send_response(200)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
    return fault


def hang(seconds):
    "Say nothing for a while"
    def fault(site, handler, path):
        time.sleep(seconds)
        handler.close_connection = True
    return fault


@contextmanager
def loopback(site=None):
    "A running `Site`, or another that answers as one does"
    site = site or Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            try:
                site.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_POST = do_DELETE = do_GET

        def log_message(self, *args):
            pass

    site.start(Handler)
    try:
        yield site
    finally:
        site.stop()
