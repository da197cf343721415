"""Errors that the store raises when it writes or reads the folder of a run."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StoreError(RuntimeError):
    """The store cannot write or read a run, because the disk is full, or a stored file is damaged or not accepted."""


class NoRoom(StoreError):
    """The disk is full, or a quota or a limit on file sizes is reached. Complete runs are intact; this one is not."""


class FolderGone(StoreError):
    """The folder of a run was removed or renamed while the run was being written. There is nowhere to write it now."""


class LaterSchema(StoreError):
    """A record was written by a later bdlbench. It is not damaged, so it is never set aside or overwritten."""


class RunBusy(RuntimeError):
    """Another process is writing this run."""


class RunExists(RuntimeError):
    """The run has a finished record already. Another process may have written it a moment ago."""


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Replace the error of a full disk by one that says what it means for the run in ``path``.

    Raises
    ------
    NoRoom
        In place of an ``OSError`` that says that there is no space (disk, quota or file size limit). Other errors pass
        unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise NoRoom(
            f"store.path: no room left to write '{path}' ({error.strerror}); what was complete is intact, so free some "
            "space or set store.path to another disk and run again."
        ) from error
