"""Fetching: the HTTP path against a local server, the cache, the mirror, and what goes wrong on the way."""

import contextlib
import errno
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bdlbench.data import fetch
from bdlbench.types import ConfigError

BODY = b"1.0 2.0\n" * 5000
FILE = fetch.File(("toy",), "owner/repo", "c0ffee", "sets/toy.txt", hashlib.sha256(BODY).hexdigest(), len(BODY))


ENDLESS = 2**28


class Server(ThreadingHTTPServer):
    """Answers with what ``mode`` says and remembers the paths it was asked for."""

    mode = "good"
    request_queue_size = 64  # eight threads ask at once

    def __init__(self) -> None:
        """Listen on a free port of this machine."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.sent = 0


class Handler(BaseHTTPRequestHandler):
    """Good, missing, wrong bytes, half the bytes with or without the promise of all, nothing, or far too much."""

    server: Server

    def do_GET(self) -> None:
        """Answer in the server's mode."""
        self.server.asked.append(self.path)
        mode = self.server.mode
        if mode == "missing":
            self.send_error(404)
            return
        if mode == "endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader has left
                while self.server.sent < ENDLESS:
                    self.server.sent += self.wfile.write(BODY)
            return
        body = {"good": BODY, "wrong": b"x" + BODY[1:], "half": BODY[:777], "cut": BODY[:777], "empty": b""}[mode]
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) if mode == "half" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty cache, no mirror, and a registry of one file."""
    monkeypatch.setattr(fetch, "registry", lambda: {(FILE.repository, FILE.path): FILE})
    monkeypatch.setenv("BDLBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("BDLBENCH_MIRROR", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Server]:
    """Serve on 127.0.0.1 as the mirror."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("BDLBENCH_MIRROR", f"http://127.0.0.1:{running.server_port}/base/")
        yield running
        running.shutdown()
        thread.join()


def left(cache: Path) -> list[str]:
    """Names of all files in the cache."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file())


def test_success_is_cached(cache: Path, server: Server) -> None:
    """The file lies under OWNER/REPO/COMMIT/PATH, was asked for by the same tail, and only once."""
    for _ in range(2):
        found = fetch.files_at().fetch("owner/repo", "sets/toy.txt")
        assert found == cache / "owner/repo/c0ffee/sets/toy.txt" and found.read_bytes() == BODY
    assert server.asked == ["/base/owner/repo/c0ffee/sets/toy.txt"]
    assert left(cache) == ["toy.txt"]


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("missing", fetch.NotFetchedError, r"answered 404: put the file at .*toy\.txt, or set BDLBENCH_MIRROR"),
        ("wrong", ConfigError, r"gave 40000 bytes that are not the 40000 registered ones: try again, or set"),
        ("cut", ConfigError, r"gave 777 bytes that are not the 40000 registered ones"),
        ("half", fetch.NotFetchedError, r"could not be downloaded \(ChunkedEncodingError\)"),
        ("empty", ConfigError, r"gave 0 bytes that are not the 40000 registered ones"),
        ("endless", ConfigError, r"gave more than 40000 bytes that are not the 40000 registered ones"),
    ],
)
def test_a_bad_answer_leaves_nothing_and_a_retry_works(
    cache: Path, server: Server, mode: str, kind: type[Exception], message: str
) -> None:
    """Each fault is one sentence and leaves no file, and the next good answer is taken."""
    server.mode = mode
    with pytest.raises(kind, match=message) as caught:
        fetch.files_at().fetch("owner/repo", "sets/toy.txt")
    assert "\n" not in str(caught.value) and left(cache) == []
    server.mode = "good"
    found = fetch.files_at().fetch("owner/repo", "sets/toy.txt")
    assert found.read_bytes() == BODY and left(cache) == ["toy.txt"]
    assert found.stat().st_mode & 0o777 == 0o644  # others may read a shared cache


def test_no_more_is_taken_than_the_registered_size(cache: Path, server: Server) -> None:
    """A server that never stops is left once it has sent more than the file has, however much it goes on to send."""
    server.mode = "endless"
    with pytest.raises(ConfigError, match="gave more than 40000 bytes"):
        fetch.files_at().fetch("owner/repo", "sets/toy.txt")
    # what the sockets' buffers hold, some megabytes, may have been sent in vain
    assert server.sent < ENDLESS / 2


def test_no_network_and_no_mirror_says_where_the_file_goes(cache: Path) -> None:
    """A refused connection names the URL, the place in the cache and the mirror's tail."""
    with pytest.raises(fetch.NotFetchedError, match=r"put the file at .*cache/owner/repo/c0ffee/sets/toy\.txt, or set"):
        fetch.files_at().fetch("owner/repo", "sets/toy.txt")
    assert left(cache) == []


def test_a_damaged_file_of_the_cache_is_replaced_by_a_checked_one_only(cache: Path, server: Server) -> None:
    """A flipped byte in the cache is never read: a good copy takes its place, and a bad answer leaves it as it is."""
    found = fetch.files_at().fetch("owner/repo", "sets/toy.txt")
    for damaged in (b"y" + BODY[1:], b"y" + BODY):
        found.write_bytes(damaged)
        server.mode = "wrong"
        with pytest.raises(ConfigError, match="not the 40000 registered ones"):
            fetch.files_at().fetch("owner/repo", "sets/toy.txt")
        assert found.read_bytes() == damaged
        server.mode = "good"
        assert fetch.files_at().fetch("owner/repo", "sets/toy.txt").read_bytes() == BODY
    assert left(cache) == ["toy.txt"]


def test_mirror_folder_is_read_in_place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's file is checked and not copied; a damaged one is an error and stays; a missing folder is named."""
    mirrored = tmp_path / "mirror" / FILE.tail
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(BODY)
    files = fetch.files_at(mirror=tmp_path / "mirror")
    assert files.fetch("owner/repo", "sets/toy.txt") == mirrored and left(cache) == []
    mirrored.write_bytes(b"z" + BODY)
    with pytest.raises(ConfigError, match="copy it into the mirror again"):
        files.fetch("owner/repo", "sets/toy.txt")
    assert mirrored.read_bytes() == b"z" + BODY
    monkeypatch.setenv("BDLBENCH_MIRROR", str(tmp_path / "nowhere"))
    for lost in (fetch.files_at(), fetch.files_at(mirror=tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=r"^paths\.mirror or BDLBENCH_MIRROR is .*nowhere, which is no folder: "):
            lost.fetch("owner/repo", "sets/toy.txt")


def test_options_come_before_the_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache is the option's, else the variable's, else the user's; nothing of one call is left for the next."""
    assert fetch.files_at(tmp_path / "other", "http://a").cache == tmp_path / "other"
    assert fetch.files_at() == fetch.Files(cache, None)
    monkeypatch.setenv("BDLBENCH_MIRROR", "http://b")
    assert [fetch.files_at(mirror=mirror).mirror for mirror in ("http://a", None)] == ["http://a", "http://b"]
    monkeypatch.delenv("BDLBENCH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert fetch.files_at().cache == tmp_path / "home" / "bdlbench" / "data"


def test_file_missing_in_the_mirror_folder_is_downloaded(
    cache: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folder lacks comes from the network into the cache."""
    monkeypatch.setattr(fetch, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
    assert fetch.files_at(mirror=tmp_path).fetch("owner/repo", "sets/toy.txt") == cache / FILE.tail


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "a folder you can write to")]
)
def test_disk_full(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    """A write that fails half-way is one sentence with the remedy and leaves nothing."""

    def fail(path: Any, mode: int) -> None:
        raise OSError(number, "cannot write")

    monkeypatch.setattr(fetch.os, "chmod", fail)  # once all bytes are there
    with pytest.raises(ConfigError, match=message):
        fetch.files_at().fetch("owner/repo", "sets/toy.txt")
    assert left(cache) == []


def test_another_thread_makes_the_folder_first(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before this one would: the file is fetched all the same, as those of one folder are, side by side."""
    make = fetch.os.makedirs

    def late(path: Any, *args: Any, **options: Any) -> None:
        make(path, exist_ok=True)
        make(path, *args, **options)

    monkeypatch.setattr(fetch.os, "makedirs", late)
    assert fetch.files_at().fetch("owner/repo", "sets/toy.txt").read_bytes() == BODY


def test_unknown_file(cache: Path) -> None:
    """A file that the registry does not know is refused."""
    with pytest.raises(ConfigError, match=r"owner/repo/other\.txt is not in the registry"):
        fetch.files_at().fetch("owner/repo", "other.txt")


def test_fetch_all_reports_what_is_missing(cache: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """All at once; failures are listed, and the exit code says so."""
    server.mode = "missing"
    assert list(fetch.fetch_all(fetch.files_at(), quiet=True)) == [FILE.tail]
    assert fetch.main(["toy"]) == 1 and "answered 404" in capsys.readouterr().err
    server.mode = "good"
    assert fetch.main([]) == 0 and left(cache) == ["toy.txt"]
    assert fetch.main(["unknown"]) == 1 and "choose from toy" in capsys.readouterr().err


def test_the_command_says_that_a_mirror_folder_is_read_in_place(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache stays empty, and the last line says why."""
    mirrored = tmp_path / "mirror" / FILE.tail
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(BODY)
    monkeypatch.setenv("BDLBENCH_MIRROR", str(tmp_path / "mirror"))
    assert fetch.main([]) == 0 and left(cache) == []
    assert capsys.readouterr().out.endswith(
        "mirror (a folder: its files are read in place, not copied into the cache)\n"
    )


def test_the_command_counts_equal_failures(
    cache: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty files that fail alike are one line with their number and an example; another kind has its own line."""
    many = [FILE._replace(path=f"sets/{number}.txt") for number in range(40)]
    monkeypatch.setattr(fetch, "registry", lambda: {(file.repository, file.path): file for file in many})
    server.mode = "missing"
    assert fetch.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"40 files failed alike, one of them: data: http://\S+\.txt answered 404: put the file at", line)
    mirrored = tmp_path / many[7].tail
    mirrored.parent.mkdir(parents=True, exist_ok=True)
    mirrored.write_bytes(BODY[:5])
    monkeypatch.setenv("BDLBENCH_MIRROR", str(tmp_path))
    assert fetch.main([]) == 1
    lines = sorted(capsys.readouterr().err.splitlines())
    assert (
        len(lines) == 2 and lines[0].startswith("39 files failed alike") and "7.txt has the wrong checksum" in lines[1]
    )


def test_an_unknown_set_is_told_its_neighbours() -> None:
    """A near name is offered; without one all sets are, but not the mark of files that only tests read."""
    with pytest.raises(ConfigError, match=r"registered for wines, yatch: did you mean wine or yacht\?$"):
        fetch.fetch_all(fetch.files_at(), ("yatch", "wines"), quiet=True)
    with pytest.raises(ConfigError, match=r"choose from airfoil, .*, yacht\.$") as caught:
        fetch.fetch_all(fetch.files_at(), ("zzz",), quiet=True)
    assert "tests" not in str(caught.value)


def test_registry_is_well_formed() -> None:
    """Commits and checksums are whole hexadecimal numbers, and no file is named twice."""
    files = fetch.registry().values()
    assert len(files) == len({f.tail for f in files}) > 300
    for file in files:
        assert len(file.commit) == 40 and len(file.sha256) == 64 and file.size > 0 and file.sets
        int(file.commit + file.sha256, 16)
