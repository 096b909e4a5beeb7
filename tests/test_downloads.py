"""`fetch` against a real server that misbehaves: what arrives is whole and right, or a sentence says what to do."""
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import body, cut, hang, loopback, status

from scinterp.cells import downloads
from scinterp.core import DataError

BYTES = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BYTES).hexdigest()
CODE = "import sys; from scinterp.cells.downloads import fetch; print(fetch(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], progress=False))"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("SCINTERP_OFFLINE", raising=False)
    with loopback() as site:
        site.files["cells.mtx"] = BYTES
        yield site


@pytest.fixture
def fetch(site, tmp_path):
    def call(name="cells.mtx", urls=None, sha256=SHA256, **options):
        return downloads.fetch(name, urls or site.url(name), sha256, tmp_path, **dict(progress=False, timeout=5, tries=2) | options)

    return call


def whole(path, folder):
    "The file is right, and nothing but it, its record and its lock are in the folder"
    assert path.read_bytes() == BYTES
    assert {p.name for p in folder.iterdir()} <= {path.name, f"{path.name}.sha256", f".{path.name}.lock"}


def test_fetched_once(site, fetch, tmp_path):
    whole(fetch(), tmp_path)
    whole(fetch(), tmp_path)
    assert site.asked("cells.mtx") == [None]


def test_permissions_are_those_of_any_file(fetch):
    mask = os.umask(0o022)
    try:
        assert fetch().stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_truncated_body_is_resumed(site, fetch, tmp_path):
    site.faults["cells.mtx"] = [cut(100_000), cut(120_000)]
    whole(fetch(), tmp_path)
    assert site.asked("cells.mtx") == [None, "bytes=100000-", "bytes=220000-"]


def test_a_line_that_breaks_often_is_followed_while_it_moves_on(site, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda s: None)
    site.faults["cells.mtx"] = [cut(30_000)] * 8
    whole(fetch(tries=1), tmp_path)


@settings(max_examples=15, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 120_000), max_size=6), st.booleans())
def test_any_breaks_give_the_right_bytes(site, monkeypatch, breaks, ranges):
    monkeypatch.setattr(downloads.time, "sleep", lambda s: None)
    site.ranges, site.faults["cells.mtx"] = ranges, [cut(n) for n in breaks]
    with tempfile.TemporaryDirectory() as folder:
        whole(downloads.fetch("cells.mtx", site.url("cells.mtx"), SHA256, folder, progress=False, timeout=5, tries=7), Path(folder))


def test_always_truncated_ends_with_a_sentence(site, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda s: None)
    site.faults["cells.mtx"] = [cut(100_000)] + [cut(0)] * 99
    with pytest.raises(DataError, match=r"broke after 100000 .*try again later, or put the file at .*cells\.mtx"):
        fetch()
    assert not (tmp_path / "cells.mtx").exists()
    site.faults.clear()
    whole(fetch(), tmp_path)
    assert site.asked("cells.mtx")[-1] == "bytes=100000-", "the next run goes on where this one ended"


@pytest.mark.parametrize("tags,ranges", [(True, False), (False, True), (False, False)])
def test_server_that_cannot_resume(site, fetch, tmp_path, tags, ranges):
    site.tags, site.ranges = tags, ranges
    site.faults["cells.mtx"] = [cut(100_000)]
    whole(fetch(), tmp_path)
    assert site.asked("cells.mtx")[1] == ("bytes=100000-" if tags else None), "without a version there is nothing to resume"


def test_file_that_changed_between_tries(site, fetch, tmp_path):
    site.files["cells.mtx"] = BYTES[::-1]

    def first(site, handler, path):
        cut(100_000)(site, handler, path)
        site.files["cells.mtx"] = BYTES

    site.faults["cells.mtx"] = [first]
    whole(fetch(sha256=""), tmp_path)


def test_server_that_sends_another_part(site, fetch, tmp_path):
    def other(site, handler, path):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-{len(BYTES) - 1}/{len(BYTES)}")
        handler.send_header("Content-Length", str(len(BYTES) - 5))
        handler.end_headers()
        handler.wfile.write(BYTES[5:])

    site.faults["cells.mtx"] = [cut(100_000), other]
    whole(fetch(), tmp_path)


def test_killed_between_the_last_byte_and_the_move(site, fetch, tmp_path):
    site.faults["cells.mtx"] = [cut(299_999)]
    with pytest.raises(DataError):
        fetch(tries=0)
    [part] = (tmp_path / ".cells.mtx.parts").glob("*.part")
    part.write_bytes(BYTES)
    whole(fetch(), tmp_path)
    assert site.asked("cells.mtx") == [None, "bytes=300000-"], "one short request, not the file again"


def test_altered_bytes_are_removed_and_the_second_source_is_used(site, fetch, tmp_path):
    site.files["mirror.mtx"] = BYTES
    site.files["cells.mtx"] = BYTES[:-1] + b"x"
    whole(fetch(urls=[site.url("cells.mtx"), site.url("mirror.mtx")]), tmp_path)


def test_altered_bytes_everywhere(site, fetch, tmp_path):
    site.files["cells.mtx"] = BYTES[:-1] + b"x"
    with pytest.raises(DataError, match="SHA-256 differs.*put the file at"):
        fetch()
    assert [p for p in tmp_path.rglob("*") if p.is_file() and BYTES[:1000] in p.read_bytes()] == []


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusals_are_not_asked_again(site, fetch, code):
    site.faults["cells.mtx"] = [status(code)] * 9
    with pytest.raises(DataError, match=f"HTTP {code}"):
        fetch(tries=5)
    assert len(site.asked("cells.mtx")) == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_busy_servers_are_asked_again_when_they_say(site, fetch, tmp_path, code, monkeypatch):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    site.faults["cells.mtx"] = [status(code, Retry_After="7"), status(code, Retry_After=formatdate(time.time() + 30, usegmt=True))]
    whole(fetch(tries=3), tmp_path)
    assert waits[0] == 7 and 20 < waits[1] <= 30


def test_busy_for_ever(site, fetch, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda s: None)
    site.faults["cells.mtx"] = [status(503)] * 99
    with pytest.raises(DataError, match="HTTP 503"):
        fetch(tries=4)
    assert len(site.asked("cells.mtx")) == 4


def test_a_long_wait_is_not_waited(site, fetch, tmp_path):
    site.files["mirror.mtx"] = BYTES
    site.faults["cells.mtx"] = [status(429, Retry_After="3600")]
    whole(fetch(urls=[site.url("cells.mtx"), site.url("mirror.mtx")]), tmp_path)
    assert len(site.asked("cells.mtx")) == 1


def test_hang(site, fetch):
    site.faults["cells.mtx"] = [hang(20)]
    start = time.perf_counter()
    with pytest.raises(DataError, match="no answer for 0.2 s"):
        fetch(timeout=.2, tries=1)
    assert time.perf_counter() - start < 5


def test_hang_in_the_middle(site, fetch, tmp_path):
    def fault(site, handler, path):
        site.send(handler, path, cut=131_072)
        time.sleep(3)
        handler.close_connection = True

    site.faults["cells.mtx"] = [fault]
    whole(fetch(timeout=.5), tmp_path)
    assert site.asked("cells.mtx")[1] == "bytes=131072-"


def test_nobody_listens(fetch, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda s: None)
    with pytest.raises(DataError, match="no connection"):
        fetch(urls=["http://127.0.0.1:9/cells.mtx"])


def test_a_login_page_is_not_the_file(site, fetch):
    site.faults["cells.mtx"] = [body(b"<html>Please log in</html>", Content_Type="text/html; charset=utf-8")]
    with pytest.raises(DataError, match="a web page came"):
        fetch(sha256="")


def test_bytes_are_taken_as_they_come(site, fetch, tmp_path):
    site.faults["cells.mtx"] = [body(BYTES, Content_Encoding="gzip")]
    whole(fetch(), tmp_path)


def test_unwritable_folder(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to .*SCINTERP_CACHE"):
        downloads.fetch("cells.mtx", site.url("cells.mtx"), SHA256, tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk(site, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "open", lambda path, mode: open("/dev/full", mode, buffering=0), raising=False)
    with pytest.raises(DataError, match="No space left on device"):
        fetch()


def test_offline(site, fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("SCINTERP_OFFLINE", "1")
    with pytest.raises(DataError, match=r"SCINTERP_OFFLINE forbids downloads: get it from http://\S+ and put it at \S+cells\.mtx$"):
        fetch()
    assert site.requests == []
    (tmp_path / "cells.mtx").write_bytes(BYTES)
    whole(fetch(), tmp_path)


def test_by_hand(fetch, tmp_path):
    with pytest.raises(DataError, match="put it at"):
        downloads.fetch("cells.mtx", [], SHA256, tmp_path)
    (tmp_path / "cells.mtx").write_bytes(BYTES[1:])
    with pytest.raises(DataError, match="not the file expected"):
        downloads.fetch("cells.mtx", [], SHA256, tmp_path)
    assert (tmp_path / "cells.mtx").read_bytes() == BYTES[1:], "a person's file is not deleted"
    (tmp_path / "cells.mtx").write_bytes(BYTES)
    whole(downloads.fetch("cells.mtx", [], SHA256, tmp_path), tmp_path)


def test_unknown_hash_is_recorded_and_compared(site, fetch, tmp_path):
    path = fetch(sha256="")
    assert (tmp_path / "cells.mtx.sha256").read_text() == f"{SHA256}  cells.mtx\n"
    path.write_bytes(BYTES[1:])
    with pytest.raises(DataError, match="not the file expected"):
        fetch(sha256="")


def test_many_at_once(site, fetch, tmp_path):
    site.pace = .005
    with ThreadPoolExecutor(6) as pool:
        for path in pool.map(lambda _: fetch(), range(6)):
            whole(path, tmp_path)
    assert site.asked("cells.mtx") == [None]


def start(site, tmp_path):
    command = [sys.executable, "-c", CODE, "cells.mtx", site.url("cells.mtx"), SHA256, str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow(8)
def test_two_processes(site, tmp_path):
    site.pace = .02
    for process in [start(site, tmp_path) for _ in range(2)]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    whole(tmp_path / "cells.mtx", tmp_path)
    assert site.asked("cells.mtx") == [None]


@pytest.mark.slow(8)
def test_killed_in_the_middle_and_resumed(site, tmp_path):
    site.pace = .3  # five seconds for the whole
    process, until = start(site, tmp_path), time.time() + 60
    part = lambda: sum(p.stat().st_size for p in tmp_path.rglob("*.part"))
    while part() < 65_536 and time.time() < until:
        time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cells.mtx").exists() and 65_536 <= part() < len(BYTES)
    kept, site.pace = part(), None
    out, err = start(site, tmp_path).communicate(timeout=60)
    whole(tmp_path / "cells.mtx", tmp_path)
    assert site.asked("cells.mtx") == [None, f"bytes={kept}-"]
