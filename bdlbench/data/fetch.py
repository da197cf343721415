"""Fetch the files of data sets from the cache, a mirror or a pinned URL, and check each by its SHA-256.

A file is named by its repository and path. ``registry.csv`` pins the commit, the SHA-256 and the size of each file. A
file is searched as ``OWNER/REPO/COMMIT/PATH`` in these places, in this order:

1. the cache: ``paths.data``, else the environment variable ``BDLBENCH_DATA``, else the user's cache folder;
2. the mirror, if one is named by ``paths.mirror``, else by ``BDLBENCH_MIRROR``. If it is a folder, the file is read
   there and not copied. If it is a URL, it takes the place of ``https://raw.githubusercontent.com``;
3. ``https://raw.githubusercontent.com``, unless the mirror is a URL.

``python -m bdlbench.data.fetch [SET ...]`` fetches all files, or those of the named sets, in advance.
"""

import csv
import errno
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
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError

BASE_URL = "https://raw.githubusercontent.com"
TIMEOUT = 30.0  # seconds after which a download that receives no byte is given up


class NotFetchedError(ConfigError):
    """A file is neither in the cache nor in the mirror, and could not be downloaded."""


class File(NamedTuple):
    """One line of the registry. ``sets`` names the data sets that read the file, or ``tests`` if only tests read it."""

    sets: tuple[str, ...]
    repository: str
    commit: str
    path: str
    sha256: str
    size: int

    @property
    def tail(self) -> str:
        """OWNER/REPO/COMMIT/PATH. It is the same in the cache, in a mirror and at the end of a URL."""
        return f"{self.repository}/{self.commit}/{self.path}"

    def is_at(self, place: Path) -> bool:
        """Whether ``place`` holds this file unchanged. Its checksum is computed only if its size is right."""
        import pooch

        return place.is_file() and place.stat().st_size == self.size and pooch.file_hash(str(place)) == self.sha256


@lru_cache(maxsize=1)
def registry() -> dict[tuple[str, str], File]:
    """All files of the registry by (repository, path)."""
    with open(Path(__file__).with_name("registry.csv"), newline="", encoding="utf-8") as lines:
        files = [
            File(
                tuple(row["sets"].split()), row["repository"], row["commit"], row["path"], row["sha256"],
                int(row["bytes"]),
            )
            for row in csv.DictReader(lines)
        ]  # fmt: skip
    return {(file.repository, file.path): file for file in files}


class Files(NamedTuple):
    """The cache and the mirror of files. The factory of a data set with files receives this as ``files``.

    Attributes
    ----------
    cache : Path
        Folder for downloaded and derived files.
    mirror : str or None
        A folder, or a base URL that is used instead of :data:`BASE_URL`.
    """

    cache: Path
    mirror: str | None = None

    @property
    def folder(self) -> Path | None:
        """The mirror if it is a folder, else None."""
        return None if self.mirror is None or "://" in self.mirror else Path(self.mirror).expanduser()

    def fetch(self, repository: str, path: str) -> Path:
        """Return the path of a file on this machine. Its checksum is right; if necessary it is downloaded to the cache.

        A file in the cache whose checksum is wrong is replaced, but only by a file whose checksum is right.

        Raises
        ------
        ConfigError
            If the registry does not contain the file, the mirror is neither a URL nor a folder that exists, the file of
            the mirror or of the server has a wrong checksum, or the disk is full or not writable.
        NotFetchedError
            If the file is neither in the cache nor in the mirror folder and the server cannot be reached or lacks it.
        """
        file = registry().get((repository, path))
        if file is None:
            raise ConfigError(f"data: {repository}/{path} is not in the registry of files: add it to registry.csv.")
        return self.locate(file)

    def locate(self, file: File) -> Path:
        """Return the path of a file of the registry, as :meth:`fetch` does."""
        if file.is_at(self.cache / file.tail):
            return self.cache / file.tail
        if self.folder is not None:
            if not self.folder.is_dir():
                raise ConfigError(
                    f"paths.mirror or BDLBENCH_MIRROR is {self.mirror}, which is no folder: name a folder or a base "
                    "URL, or leave both unset."
                )
            mirrored = self.folder / file.tail
            if file.is_at(mirrored):
                return mirrored
            if mirrored.exists():
                raise ConfigError(f"data: {mirrored} has the wrong checksum: copy it into the mirror again.")
        return self._download(file)

    def _download(self, file: File) -> Path:
        import pooch
        import requests

        base, target = self.mirror if self.mirror and not self.folder else BASE_URL, self.cache / file.tail
        url, received = f"{base.rstrip('/')}/{file.tail}", [0]

        def stream(url: str, output: str, _: Any) -> None:
            with requests.get(url, stream=True, timeout=TIMEOUT) as answer, open(output, "wb") as out:
                answer.raise_for_status()
                for chunk in answer.iter_content(2**16):
                    received[0] += len(chunk)
                    if received[0] > file.size:
                        raise ValueError("longer than registered")
                    out.write(chunk)
            os.chmod(output, 0o644)  # temporary files are private to their owner, but a cache may be shared

        pooch.get_logger().setLevel("WARNING")
        try:
            # Pooch writes to a temporary file beside the target and renames it once its checksum is right.
            target.parent.mkdir(parents=True, exist_ok=True)  # pooch fails if two threads make the same folder
            store = pooch.create(self.cache, f"{base.rstrip('/')}/", registry={file.tail: file.sha256})
            return Path(store.fetch(file.tail, downloader=stream))
        except requests.exceptions.HTTPError as error:
            code = "an error" if error.response is None else error.response.status_code
            raise NotFetchedError(
                f"data: {url} answered {code}: put the file at {target}, or set BDLBENCH_MIRROR "
                "to a mirror that has it."
            ) from None
        except requests.exceptions.RequestException as error:
            raise NotFetchedError(
                f"data: {url} could not be downloaded ({type(error).__name__}): put the file at {target}, "
                f"or set BDLBENCH_MIRROR to a folder that has {file.tail}."
            ) from None
        except ValueError:
            found = f"{received[0]}" if received[0] <= file.size else f"more than {file.size}"
            raise ConfigError(
                f"data: {url} gave {found} bytes that are not the {file.size} registered ones: try again, or set "
                f"BDLBENCH_MIRROR to a folder that has {file.tail}."
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = "free some space or set BDLBENCH_DATA to a folder on another disk"
            else:
                remedy = "set BDLBENCH_DATA to a folder you can write to"
            raise ConfigError(f"data: {target} cannot be written ({error.strerror or error}): {remedy}.") from None

    def derived(self, name: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays that are slow to make, kept in the cache as ``derived/<name>.npz``. ``name`` contains their version.

        ``build`` makes the arrays if the file is missing or damaged. If the cache cannot be written, they are returned
        and made again at the next call.
        """
        file = self.cache / "derived" / f"{name}.npz"
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}  # the CRC in the archive finds a changed byte
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
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


def files_at(cache: str | os.PathLike[str] | None = None, mirror: str | os.PathLike[str] | None = None) -> Files:
    """The cache and the mirror of ``paths.data`` and ``paths.mirror``; None takes them from the environment."""
    named = cache or os.environ.get("BDLBENCH_DATA")
    source = mirror or os.environ.get("BDLBENCH_MIRROR")
    if not named:
        from platformdirs import user_cache_path

        named = user_cache_path("bdlbench") / "data"
    return Files(Path(named).expanduser().absolute(), os.fspath(source) if source else None)


def fetch_all(files: Files, sets: tuple[str, ...] = (), *, quiet: bool = False) -> dict[str, str]:
    """Fetch the files of the named sets, or of all sets if none is named, with a progress bar.

    Returns
    -------
    dict
        The reason for each file that could not be fetched; empty if all files were fetched.

    Raises
    ------
    ConfigError
        If no files are registered for a named set.
    """
    from rich.progress import Progress

    known = {name for file in registry().values() for name in file.sets}
    if unknown := sorted(set(sets) - known):
        offered = sorted(known - {"tests"})  # this marks files that tests read; it is no set
        near = list(dict.fromkeys(n for name in unknown for n in get_close_matches(name, offered)))
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(offered)}."
        raise ConfigError(f"no files are registered for {', '.join(unknown)}: {hint}")
    wanted = [file for file in registry().values() if not sets or set(sets) & set(file.sets)]
    failed: dict[str, str] = {}
    with Progress(disable=quiet) as bar, ThreadPoolExecutor(8) as pool:
        task = bar.add_task("fetching data", total=sum(file.size for file in wanted))
        waiting = {pool.submit(files.locate, file): file for file in wanted}
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
    """Fetch the files and print what failed. The exit code is 1 if a file could not be fetched or a set is unknown."""
    files = files_at()
    try:
        failed = fetch_all(files, tuple(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for line in _summary(failed):
        print(line, file=sys.stderr)
    how = " (a folder: its files are read in place, not copied into the cache)" if files.folder else ""
    print(f"cache: {files.cache}" + (f", mirror: {files.mirror}{how}" if files.mirror else ""))
    return 1 if failed else 0


def _summary(failed: Mapping[str, str]) -> list[str]:
    """One line for each kind of failure. Failures that differ only in the file are counted, and one is shown."""
    kinds: dict[str, list[str]] = {}
    for tail, reason in failed.items():
        kind = reason.replace(tail, "").replace(tail.rsplit("/", 1)[-1], "")
        kinds.setdefault(re.sub(r"\d+", "", kind) if " registered ones" in kind else kind, []).append(reason)
    return [
        reasons[0] if len(reasons) == 1 else f"{len(reasons)} files failed alike, one of them: {reasons[0]}"
        for reasons in kinds.values()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
