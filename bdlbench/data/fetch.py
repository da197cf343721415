"""How a file comes to the user: from the cache, a mirror folder, or a pinned URL, and never unchecked.

Files are named by repository and path; ``registry.csv`` pins the commit and the SHA-256 of each. A file is looked for
under ``OWNER/REPO/COMMIT/PATH`` in this order:

1. the cache: ``fetch.configure(cache=...)``, else the environment variable ``BDLBENCH_DATA``, else the user's cache
   folder;
2. the mirror, where one is named: ``fetch.configure(mirror=...)``, else ``BDLBENCH_MIRROR``. A folder is read in
   place; a URL stands for ``https://raw.githubusercontent.com``;
3. ``https://raw.githubusercontent.com``, also for files that a mirror folder lacks.

``python -m bdlbench.data.fetch [SET ...]`` fetches everything, or the files of the named sets, beforehand.
"""

import contextlib
import csv
import errno
import hashlib
import itertools
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bdlbench.errors import ConfigError

BASE_URL = "https://raw.githubusercontent.com"
TIMEOUT = 30.0  # seconds without a byte
_configured: dict[str, str | None] = {"cache": None, "mirror": None}


class NotFetchedError(ConfigError):
    """A file is neither in the cache nor in the mirror, and could not be downloaded."""


class File(NamedTuple):
    """One line of the registry. ``sets`` names the data sets that read it; ``tests`` marks a file only tests read."""

    sets: tuple[str, ...]
    repository: str
    commit: str
    path: str
    sha256: str
    size: int

    @property
    def tail(self) -> str:
        """OWNER/REPO/COMMIT/PATH, the same in the cache, in a mirror and at the end of the URL."""
        return f"{self.repository}/{self.commit}/{self.path}"


def configure(cache: str | os.PathLike[str] | None = None, mirror: str | os.PathLike[str] | None = None) -> None:
    """Set cache folder and mirror (folder or base URL) for this process; None leaves them to the environment."""
    _configured.update(cache=None if cache is None else os.fspath(cache))
    _configured.update(mirror=None if mirror is None else os.fspath(mirror))


def cache_folder() -> Path:
    """Where downloaded files are kept."""
    named = _configured["cache"] or os.environ.get("BDLBENCH_DATA")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("bdlbench") / "data"


def mirror() -> str | None:
    """The mirror's folder or base URL, if one is named."""
    return _configured["mirror"] or os.environ.get("BDLBENCH_MIRROR") or None


def _is_folder(source: str | None) -> bool:
    return source is not None and "://" not in source


@lru_cache(maxsize=1)
def registry() -> dict[tuple[str, str], File]:
    """All known files by (repository, path)."""
    with open(Path(__file__).with_name("registry.csv"), newline="", encoding="utf-8") as lines:
        files = [
            File(
                tuple(row["sets"].split()), row["repository"], row["commit"], row["path"], row["sha256"],
                int(row["bytes"]),
            )
            for row in csv.DictReader(lines)
        ]  # fmt: skip
    return {(file.repository, file.path): file for file in files}


def fetch(repository: str, path: str) -> Path:
    """Return where the checked file lies on this machine, downloading it into the cache where it must.

    Raises
    ------
    ConfigError
        The registry does not know the file; its checksum is wrong (a file in the cache or a download is set aside as
        ``*.corrupt``, never deleted or overwritten, and the next call fetches it anew); the disk is full or not writable.
    NotFetchedError
        There is no network and no mirror that has it, or the server does not.
    """
    file = registry().get((repository, path))
    if file is None:
        raise ConfigError(f"data: {repository}/{path} is not in the registry of files: add it to registry.csv.")
    return _locate(file)


def _locate(file: File) -> Path:
    cached = cache_folder() / file.tail
    if cached.is_file():
        if _checked(cached, file.sha256):
            return cached
        aside = _set_aside(cached)
        raise ConfigError(f"data: {cached} had a wrong checksum and was moved to {aside.name}: run again to fetch it.")
    source = mirror()
    if source is not None and _is_folder(source):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            name, off = ("paths.mirror", "make it null") if _configured["mirror"] else ("BDLBENCH_MIRROR", "unset it")
            raise ConfigError(f"{name}={source} is no folder: name a folder or a base URL, or {off}.")
        mirrored = folder / file.tail
        if mirrored.is_file():
            if not _checked(mirrored, file.sha256):
                raise ConfigError(f"data: {mirrored} has the wrong checksum: copy it into the mirror again.")
            return mirrored
        source = None
    return _download(f"{(source or BASE_URL).rstrip('/')}/{file.tail}", cached, file)


def _download(url: str, target: Path, file: File) -> Path:
    import requests
    from pooch import HTTPDownloader

    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the rename cannot cross file systems; a unique name, so that two processes can race
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        HTTPDownloader(progressbar=False, timeout=TIMEOUT)(url, str(temporary), None)
        if temporary.stat().st_size and not _checked(temporary, file.sha256):
            short = f" ({temporary.stat().st_size} of {file.size} bytes)"
            aside = _set_aside(temporary, target)
            raise ConfigError(f"data: {url} gave a file of the wrong checksum{short}, kept as {aside}: try again.")
        if not temporary.stat().st_size:
            raise NotFetchedError(f"data: {url} gave an empty file: try again or set BDLBENCH_MIRROR.")
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except requests.exceptions.HTTPError as error:
        code = "an error"
        if error.response is not None:
            code = str(error.response.status_code)
            error.response.close()  # the downloader leaves the socket open
        raise NotFetchedError(
            f"data: {url} answered {code}: put the file at {target}, or set BDLBENCH_MIRROR to a mirror that has it."
        ) from None
    except requests.exceptions.RequestException as error:
        raise NotFetchedError(
            f"data: {url} could not be downloaded ({type(error).__name__}): put the file at {target}, "
            f"or set BDLBENCH_MIRROR to a folder that has {file.tail}."
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space or set BDLBENCH_DATA to a folder on another disk"
        else:
            remedy = "set BDLBENCH_DATA to a folder you can write to"
        raise ConfigError(f"data: {target} cannot be written ({error.strerror or error}): {remedy}.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return target


def _set_aside(file: Path, target: Path | None = None) -> Path:
    """Move a damaged file to the first free name of ``*.corrupt``, ``*.corrupt.1``, ..., none of which is overwritten."""
    target = target or file
    for number in itertools.count():
        aside = target.with_name(f"{target.name}.corrupt" + (f".{number}" if number else ""))
        try:
            os.close(os.open(aside, os.O_CREAT | os.O_EXCL))  # claims the name, whoever else looks for one
        except FileExistsError:
            continue
        try:
            os.replace(file, aside)
        except OSError:
            aside.unlink()
            raise
        return aside
    raise AssertionError("itertools.count() has no end")


def _checked(file: Path, sha256: str) -> bool:
    stat = file.stat()
    return _digest(str(file), stat.st_mtime_ns, stat.st_size) == sha256


@lru_cache(maxsize=4096)
def _digest(file: str, mtime: int, size: int) -> str:
    """SHA-256 of a file, once a process for a file that has not changed."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def derived(name: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays that are slow to make, kept as ``derived/<name>.npz`` in the cache. ``name`` carries their version.

    Nothing is lost when the cache cannot be written: the arrays are made again next time. A damaged file is set aside.
    """
    file = cache_folder() / "derived" / f"{name}.npz"
    if file.is_file():
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}  # the archive's own CRC tells a flipped byte
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            with contextlib.suppress(OSError):
                _set_aside(file)
    arrays = build()
    temporary: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            temporary = Path(stream.name)
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, file)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return arrays


def fetch_all(sets: tuple[str, ...] = (), *, quiet: bool = False) -> dict[str, str]:
    """Fetch the files of the named sets (none named: of all), with a progress bar.

    Returns
    -------
    dict
        What could not be fetched: the file and why. Empty when all is there.
    """
    from rich.progress import Progress

    known = {name for file in registry().values() for name in file.sets}
    if unknown := sorted(set(sets) - known):
        offered = sorted(known - {"tests"})  # a mark, not a set
        near = list(dict.fromkeys(n for name in unknown for n in get_close_matches(name, offered)))
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(offered)}."
        raise ConfigError(f"no files are registered for {', '.join(unknown)}: {hint}")
    files = [file for file in registry().values() if not sets or set(sets) & set(file.sets)]
    failed: dict[str, str] = {}
    with Progress(disable=quiet) as bar, ThreadPoolExecutor(8) as pool:
        task = bar.add_task("fetching data", total=sum(file.size for file in files))
        waiting = {pool.submit(_locate, file): file for file in files}
        for done in as_completed(waiting):
            file = waiting[done]
            error = done.exception()
            if isinstance(error, ConfigError):
                failed[file.tail] = str(error)
            elif error is not None:
                raise error
            bar.advance(task, file.size)
    return failed


def main(arguments: list[str]) -> int:
    """Fetch and report; the exit code is 1 when a file is missing."""
    try:
        failed = fetch_all(tuple(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for line in _summary(failed):
        print(line, file=sys.stderr)
    how = " (a folder: its files are read in place, not copied into the cache)" if _is_folder(mirror()) else ""
    print(f"cache: {cache_folder()}" + (f", mirror: {mirror()}{how}" if mirror() else ""))
    return 1 if failed else 0


def _summary(failed: Mapping[str, str]) -> list[str]:
    """A line a kind of failure: those that differ in the file alone are counted, and one stands for them."""
    kinds: dict[str, list[str]] = {}
    for tail, reason in failed.items():
        kind = reason.replace(tail, "").replace(tail.rsplit("/", 1)[-1], "")
        kinds.setdefault(re.sub(r"\d+ of \d+ bytes", "", kind), []).append(reason)
    return [
        reasons[0] if len(reasons) == 1 else f"{len(reasons)} files failed alike, one of them: {reasons[0]}"
        for reasons in kinds.values()
    ]


if __name__ == "__main__":
    # the module that runs as __main__ is a second copy: let the one that data sets import do the work
    from bdlbench.data import fetch as module

    sys.exit(module.main(sys.argv[1:]))
