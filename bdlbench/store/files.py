"""Write files in one step, lock folders for one process, and compute checksums that a shell can compute too."""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import IO

from bdlbench.store.errors import RunBusy, StoreError

MOST_RECORD_BYTES = 2**28
"""A longer record or curve is refused. The record of one run is far below this limit of 256 MiB."""


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file to read it. Anything else is refused without waiting, as opening a named pipe would wait.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such file.
    StoreError
        If it is a folder, a pipe, a device or a link, or cannot be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(
                f"'{path}' is a symbolic link, and links inside a store are not followed; remove it."
            ) from error
        raise StoreError(f"'{path}' cannot be read ({error.strerror}); make it readable, or remove it.") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise StoreError(f"'{path}' is no regular file; remove it.")
    return open(number, "rb")


def read_regular(path: str | Path, most: int = MOST_RECORD_BYTES) -> bytes:
    """Read a file that :func:`open_regular` opens. A file longer than ``most`` bytes is refused with StoreError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise StoreError(f"'{path}' has {size} bytes, more than the {most} that are read; remove it.")
        return file.read()


def refuse_link(folder: Path) -> None:
    """Raise StoreError if a run's folder is a symbolic link, because its target may lie outside the store."""
    if folder.is_symlink():
        raise StoreError(f"'{folder}' is a symbolic link, and links inside a store are not followed; remove it.")


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file in one step: a reader sees the old file or the new one, even after a crash at any instant.

    ``write`` fills a temporary file beside ``path``. This file is synced to disk and renamed to ``path``. Then the
    folder is synced, so that the new name survives a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder, or the contents of a file, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Synced:
    """Flushes the files of a folder to disk. A file is flushed again only if it has changed."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, int]] = {}

    def sync(self, path: Path) -> None:
        """Flush the files below ``path`` that changed since the last call. A missing folder is no error."""
        for folder, _, names in os.walk(path):
            changed = False
            for name in names:
                file = os.path.join(folder, name)
                found = os.stat(file)
                state = (found.st_ino, found.st_size, found.st_mtime_ns)
                if self._seen.get(file) == state:
                    continue
                sync_folder(Path(file))
                self._seen[file] = state
                changed = True
            if changed:
                sync_folder(Path(folder))


def size_of(path: Path) -> tuple[int, int]:
    """Bytes and number of files at ``path``, a file or a folder with all its subfolders; (0, 0) if it is missing."""
    if path.is_file():
        return path.stat().st_size, 1
    sizes = [os.stat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names]
    return sum(sizes), len(sizes)


def checksum(path: Path) -> dict[str, int | str]:
    r"""SHA-256 and size in bytes of a file, or of a folder with all its subfolders.

    The checksum of a folder is the SHA-256 of the list that ``sha256sum`` prints for its files, sorted by the bytes of
    their relative paths. The command

    ``find . -type f -printf '%P\n' | LC_ALL=C sort | xargs sha256sum | sha256sum``

    gives the same value inside the folder. A lost, added, renamed or changed file changes the value.

    Raises
    ------
    StoreError
        If a file in it is no regular file or cannot be read.
    """
    top = os.fspath(path)
    if not os.path.isdir(top):
        digest, size = _digest(top)
        return {"sha256": digest, "bytes": size}
    # Strings are faster than Path objects, and a sweep looks up each file of each run here.
    start = len(top) + 1
    names = sorted((f"{folder}/{name}"[start:] for folder, _, names in os.walk(top) for name in names), key=os.fsencode)
    total, size = hashlib.sha256(), 0
    for name in names:
        digest, one = _digest(f"{top}/{name}")
        total.update(f"{digest}  {name}\n".encode())
        size += one
    return {"sha256": total.hexdigest(), "bytes": size}


def _digest(path: str) -> tuple[str, int]:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


class FolderLock:
    """An exclusive ``flock`` on ``<folder>/.lock``. At most one process holds it, and the kernel frees it at its death.

    The lock file is never deleted while its folder stays. A process that waits for a deleted file would obtain a lock
    that no other process sees. A folder may be renamed together with its lock file, so the file that was locked is
    compared with the file that is at the path now.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None

    def acquire(self, on_busy: Callable[[str], object] | None = None) -> None:
        """Take the lock. The folder is created if it is missing.

        Parameters
        ----------
        on_busy : callable (message), optional
            Called once if another process holds the lock. This call then waits until the lock is free.

        Raises
        ------
        RunBusy
            If another process holds the lock and ``on_busy`` is None.
        """
        path = self.folder / ".lock"
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                file = open(path, "a+")  # noqa: SIM115 (stays open for as long as the lock is held)
            except FileNotFoundError:  # the folder was deleted between the two calls
                continue
            try:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    message = f"Run {self.folder.name} is being written by {holder}"
                    if on_busy is None:
                        raise RunBusy(f"{message}; wait for it to end, or stop it.") from None
                    on_busy(f"{message}; waiting for it to end.")
                    on_busy = _say_nothing  # one message is enough for one wait
                    fcntl.flock(file, fcntl.LOCK_EX)
                if _same_file(file, path):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}")
                    file.flush()
                    self._file = file
                    return
            except BaseException:
                file.close()
                raise
            file.close()

    def is_there(self) -> bool:
        """Whether the file that this object has locked is still the one at its path."""
        return self._file is not None and _same_file(self._file, self.folder / ".lock")

    def release(self) -> None:
        """Free the lock. Nothing happens if this object does not hold it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def holder(folder: Path) -> str | None:
    """The process that holds a folder's lock, as it wrote itself into the file; None if no process holds the lock.

    This tries to take a shared lock and gives it back at once. Other ways to ask give different answers on different
    kernels.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait.
        file = open(folder / ".lock", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
    except OSError:  # there is none, or what has its name is no file that a process could have locked
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None


def _say_nothing(message: str) -> None:
    pass


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def wipe_folder(folder: Path, keep: tuple[str, ...] = (".lock",)) -> None:
    """Delete what is inside ``folder`` except the names in ``keep``."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def wipe_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders of the store and of Zarr that a killed process left below ``folder``."""
    for place, folders, names in os.walk(folder):
        for name in [name for name in folders if name.startswith(".") and name.endswith(".tmp")]:
            shutil.rmtree(os.path.join(place, name))
            folders.remove(name)
        for name in names:
            if name.endswith(".partial") or (name.startswith(".") and name.endswith(".tmp")):
                os.unlink(os.path.join(place, name))
