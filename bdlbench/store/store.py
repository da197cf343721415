"""The reader of results, and where their only writer comes from.

A store is a folder of run folders. A run counts from the instant its ``run.json`` is there; the table of runs is a
query over these records, never a second truth. The format is written down in ``docs/store.md``.
"""

import fcntl
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdlbench.errors import ConfigError
from bdlbench.store import records, table
from bdlbench.store.codecs import refuse_codecs
from bdlbench.store.errors import LaterSchema, StoreError, clear_disk_errors
from bdlbench.store.files import FolderLock, checksum, holder, read_regular, refuse_link, replace_file, size_of
from bdlbench.store.writer import RunWriter

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

VERIFIED_BYTES = 4 * 2**30
"""What one command reads to verify the runs that it finds finished: a few seconds' worth."""
FILE_COST = 2**16
"""Opening a file, in bytes that could be read meanwhile."""
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+@-]{0,199}")


class Store:
    """A folder of runs.

    Parameters
    ----------
    path : path-like
        The folder. Reading one that does not exist finds no runs; it is made when the first run is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._read = 0

    def check_writable(self) -> None:
        """Make the folder and prove that a run can be written to it: a file is made, locked and removed.

        Raises
        ------
        ConfigError
            If it cannot. Permission bits are not asked, since they mean nothing to root or on a read-only mount.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(4096))
                file.flush()
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"store.path: cannot write to '{self.path}' ({error.strerror}); set store.path to a folder on a disk "
                "with room that you may write to."
            ) from error

    def writer(
        self,
        id: str,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool | Callable[[], bool] = False,
        on_busy: Callable[[str], object] | None = None,
    ) -> RunWriter:
        """The context manager that writes run ``id``; see :class:`~bdlbench.store.writer.RunWriter`.

        A folder whose record is damaged is set aside first, so that its run is simply run again.
        """
        folder = self._folder(id)
        if self._damaged(id):
            self._move(id, ".set_aside", on_busy, lambda: self._damaged(id))
        return RunWriter(folder, config, resume=resume, overwrite=overwrite, on_busy=on_busy)

    def runs(self, *, config: bool = False) -> "pd.DataFrame":
        """One row a finished run, whatever its status, in order of creation.

        Parameters
        ----------
        config : bool
            Add every leaf of the configuration as a column ``config.<dotted key>``.

        Returns
        -------
        DataFrame
            ``id``, ``status``, ``reason``, the labels (``data``, ``model``, ``network``, ``prior``, ``likelihood``,
            ``inference``), ``seed``, ``split``, each metric by its name (nested ones joined by ``_``),
            ``seconds_<phase>``, ``num_grads_<phase>``, ``lanes``, ``peak_memory_bytes``, ``device``, ``warnings``
            (their number), ``created``. What a record lacks is missing (NaN or None).

        Warns
        -----
        UserWarning
            With the ids of runs whose record cannot be read; they are left out.
        """
        return table.frame(self.rows(config=config))

    def rows(self, *, config: bool = False) -> list[dict[str, Any]]:
        """The rows of :meth:`runs` as dicts, in which what is missing is None and a NaN is a NaN."""
        rows: list[dict[str, Any]] = []
        damaged: list[str] = []
        for entry in self._folders():
            try:
                record = self._read_record(entry.name)
                rows.append(records.row(record, config=config))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (StoreError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
                damaged.append(entry.name)
        if damaged:
            warnings.warn(
                f"store.path: {len(damaged)} records in '{self.path}' cannot be read and are left out: "
                f"{', '.join(sorted(damaged)[:10])}; verify them.",
                stacklevel=3,
            )
        return sorted(rows, key=lambda row: (row["created"], row["id"]))

    def sql(self, query: str) -> "pd.DataFrame":
        """Answer a DuckDB query over the table ``runs``: the frame of :meth:`runs`, missing values as NULL.

        Columns of the configuration are there as ``"config.<dotted key>"``, in double quotes. Lists, and columns
        whose entries are of several kinds, are text.

        Raises
        ------
        ConfigError
            If DuckDB cannot answer the query.
        """
        return table.answer(self.rows(config="config." in query), query)

    def record(self, id: str) -> records.Record:
        """The whole record of a finished run.

        Raises
        ------
        ConfigError
            If there is no finished run ``id``.
        StoreError
            If the record is damaged.
        """
        try:
            return self._read_record(id)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"id: the store '{self.path}' has no finished run '{id}'; list them first.") from None
        except OSError as error:
            raise StoreError(f"The record of run '{id}' cannot be read ({error.strerror}).") from error

    def _read_record(self, id: str) -> records.Record:
        """The record in a run's folder, whole and of this run."""
        folder = self._folder(id)
        refuse_link(folder)
        path = folder / "run.json"
        record = records.decode(read_regular(path), path)
        if record.get("id") != id:
            raise StoreError(f"The record '{path}' is that of another run, '{record.get('id')}'; delete this folder.")
        return record

    def has(self, id: str) -> bool:
        """Whether run ``id`` has a finished record that is sound, whatever its status.

        Raises
        ------
        LaterSchema
            If a later bdlbench wrote it: running it again would write over it.
        """
        try:
            return bool(self.record(id))
        except LaterSchema:
            raise
        except (ConfigError, StoreError):
            return False

    def sound_record(self, id: str, note: Callable[[str], object] | None = None) -> records.Record | None:
        """The record of run ``id`` if it and the files beside it are whole; None if there is none.

        A damaged run is set aside, which ``note`` is told of. Sizes are compared always, contents by checksum until
        this object has read ``VERIFIED_BYTES``, so that looking up a large sweep costs seconds; :meth:`verify` reads all.
        """
        record, fault = self._look(id)
        if record is None or fault is None:
            return record
        if note is not None:
            note(f"{id}: set aside, to be run again: {fault}")
        with suppress(ConfigError):  # another process was faster
            self._move(id, ".set_aside", note or (lambda message: None), lambda: self._look(id)[1] is not None)
        return None

    def _look(self, id: str) -> tuple[records.Record | None, str | None]:
        """The record of a finished run, if there is one, and what is wrong with it, as cheaply as can be."""
        try:
            record = self.record(id)
        except LaterSchema:
            raise
        except StoreError as error:
            return {}, str(error)
        except ConfigError:
            return None, None
        for name, stored in record["files"].items():
            path = self._folder(id) / name
            size, number = size_of(path)
            if number == 0 or size != stored["bytes"]:
                return record, f"'{path}' has {size} bytes, not {stored['bytes']}."
            self._read += size + number * FILE_COST
            if self._read <= VERIFIED_BYTES and checksum(path) != stored:
                return record, f"'{path}' does not fit its checksum."
        return record, None

    def has_checkpoint(self, id: str) -> bool:
        """Whether run ``id`` is unfinished and can go on from a checkpoint."""
        return [(self._folder(id) / name).exists() for name in ("checkpoint/state.npz", "run.json")] == [True, False]

    def finished(self) -> list[str]:
        """Ids of folders with a record, sound or not, sorted."""
        return sorted(entry.name for entry in self._folders() if os.path.exists(f"{entry.path}/run.json"))

    def unfinished(self) -> list[str]:
        """Ids of folders without a record: runs in progress, or broken off."""
        return sorted(entry.name for entry in self._folders() if not os.path.exists(f"{entry.path}/run.json"))

    def holder(self, id: str) -> str | None:
        """The process that writes a run at this moment, ``process 123 on host``; None where none does."""
        return holder(self._folder(id))

    def find(self, prefix: str, *, unfinished: bool = False) -> str:
        """The id of the one finished run (or also ``unfinished`` one) that begins with ``prefix`` or is exactly it.

        Raises
        ------
        ConfigError
            If none or several do; up to ten candidates are named.
        """
        known = self.finished() + (self.unfinished() if unfinished else [])
        fits = [prefix] if prefix in known else [name for name in known if name.startswith(prefix)]
        if len(fits) == 1:
            return fits[0]
        if not fits:
            kind = "run" if unfinished else "finished run"
            raise ConfigError(f"id: no {kind} in '{self.path}' begins with '{prefix}'; list the runs to see them.")
        named = ", ".join(fits[:10]) + (f" and {len(fits) - 10} more" if len(fits) > 10 else "")
        raise ConfigError(f"id: '{prefix}' is the beginning of {len(fits)} runs; give more of one of {named}.")

    def posterior(self, id: str) -> "xr.DataTree":
        """The run's draws as an ArviZ-schema DataTree, read from disk where they are used.

        Raises
        ------
        ConfigError
            If the run stored no draws.
        """
        import xarray as xr

        refuse_link(self._folder(id))
        path = self._folder(id) / "posterior.zarr"
        if not path.is_dir():
            raise ConfigError(f"id: run '{id}' in '{self.path}' stored no draws; choose a run that is complete.")
        refuse_codecs(path)
        return xr.open_datatree(path, engine="zarr")

    def curve(self, id: str) -> "pd.DataFrame":
        """Scores of the running posterior against gradients, seconds and draws: one row a line of ``curve.jsonl``.

        A run in progress can be read too; a last line that is still being written is left out.
        """
        import pandas as pd

        path = self._folder(id) / "curve.jsonl"
        try:
            text = read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"id: the store '{self.path}' has no curve of a run '{id}'; list the runs.") from None
        try:
            return pd.DataFrame([records.decode_line(line) for line in text.split(b"\n")[:-1]])
        except (ValueError, KeyError) as error:
            raise StoreError(f"The curve '{path}' is damaged ({error}); delete its run and run it again.") from error

    def verify(self, id: str) -> list[str]:
        """What is wrong with a finished run, in sentences: its record, then each file against its checksum.

        Zarr reads a lost chunk as empty without complaint; this does not.
        """
        try:
            record = self.record(id)
        except StoreError as error:
            return [str(error)]
        faults = []
        for name, stored in record["files"].items():
            path = self._folder(id) / name
            if not path.exists():
                faults.append(f"'{path}' is missing.")
            elif checksum(path) != stored:
                faults.append(f"'{path}' does not fit its checksum.")
        return faults

    def amend(self, id: str, change: Callable[[records.Record], records.Record]) -> records.Record:
        """Put a changed record in the place of a finished run's, in one rename; returns it.

        Parameters
        ----------
        id : str
        change : callable (record) -> record
            Handed the record as it is once no other process writes the run.

        Raises
        ------
        RunBusy
            If a process is writing the run.
        ConfigError
            If there is no finished run ``id``.
        """
        lock = FolderLock(self._folder(id))
        self.record(id)  # a folder without a record must not get a lock file
        lock.acquire(None)
        try:
            old = {k: v for k, v in self.record(id).items() if k not in ("nonfinite", "record_sha256")}
            text = records.encode(records.validated(change(old), id, old["config"]))
            path = self._folder(id) / "run.json"
            with clear_disk_errors(self._folder(id)):
                replace_file(path, lambda file: file.write(text))
        finally:
            lock.release()
        return records.decode(text, path)

    def delete(self, id: str, *, unless_complete: bool = False) -> None:
        """Delete a run, finished or not (``unless_complete``). It stops counting at once, before its files go.

        Raises
        ------
        RunBusy
            If a process is writing it.
        ConfigError
            If there is no such folder.
        """
        complete = lambda: self.has(id) and self.record(id)["status"] == "complete"  # noqa: E731
        self._move(id, ".deleted", still_wanted=lambda: not (unless_complete and complete()))

    def set_aside(self, id: str) -> None:
        """Move a damaged run out of the way, to ``.set_aside/`` in the store; raises as :meth:`delete` does."""
        self._move(id, ".set_aside")

    def _move(
        self,
        id: str,
        where: str,
        on_busy: Callable[[str], object] | None = None,
        still_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        folder = self._folder(id)
        refuse_link(folder)
        if not folder.is_dir():
            raise ConfigError(f"id: the store '{self.path}' has no run '{id}'; list them first.")
        lock = FolderLock(folder)
        lock.acquire(on_busy)
        try:
            if not still_wanted():  # the process that was waited for put it right
                return
            (self.path / where).mkdir(exist_ok=True)
            place = tempfile.mkdtemp(prefix=f"{id}.", dir=self.path / where)
            os.replace(folder, place)  # a folder may be renamed onto an empty one
        finally:
            lock.release()
        if where == ".deleted":
            shutil.rmtree(place)

    def _damaged(self, id: str) -> bool:
        return (self._folder(id) / "run.json").exists() and not self.has(id)

    def _folder(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise ConfigError(f"id: '{id}' is no run id; use letters, digits and _ . , = + @ - only.")
        return self.path / id

    def _folders(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                yield from (entry for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return
