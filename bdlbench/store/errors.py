"""What can go wrong between a run and its folder."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StoreError(RuntimeError):
    """The store could not do what a sound disk would have done: it is full, or a stored file is damaged."""


class NoRoom(StoreError):
    """The disk, a quota or a limit on file sizes leaves no room: what was complete is intact, and nothing else is."""


class LaterSchema(StoreError):
    """A record was written by a later bdlbench. It is sound, so it is never set aside or written over."""


class RunBusy(RuntimeError):
    """Another process is writing this run."""


class RunExists(RuntimeError):
    """The run has a finished record already, perhaps since a moment ago and from another process."""


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Say in one sentence what a full disk means for the run in ``path``; other errors pass unchanged.

    Raises
    ------
    NoRoom
        In place of an ``OSError`` for want of space (disk, quota or file size limit).
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
