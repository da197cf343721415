"""The store reads results and makes the writer of each run.

A store is a folder that holds one folder for each run. A run counts as finished as soon as its record ``run.json``
exists. The table of runs is computed from these records and is stored nowhere else. The format is described in
``docs/store.md``.
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
from bdlbench.store.arrays import EARLIER, PosteriorArrays
from bdlbench.store.codecs import refuse_codecs
from bdlbench.store.errors import LaterSchema, RunBusy, StoreError, clear_disk_errors
from bdlbench.store.files import FolderLock, checksum, holder, read_regular, refuse_link, replace_file, size_of
from bdlbench.store.writer import RERUNS, RunWriter, deaths, sweep_leftovers

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

VERIFIED_BYTES = 4 * 2**30
"""Largest number of bytes that one store object reads to verify checksums, which takes a few seconds."""
FILE_COST = 2**16
"""The cost of opening a file, as the number of bytes that can be read in the same time."""
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+@-]{0,199}")


class Store:
    """A folder of runs.

    Parameters
    ----------
    path : path-like
        The folder; ``~`` is the user's home. If it does not exist, it has no runs; it is made when the first run is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            text = os.fspath(path)
            self.path = Path(text).expanduser()
        except (TypeError, RuntimeError) as error:  # not a path, or the home of an unknown user
            raise ConfigError(
                f"store.path={path!r} is no folder ({error}): give a path such as results/store."
            ) from None
        if not text.strip() or "\0" in text:
            raise ConfigError(f"store.path={text!r} is no folder: give a path such as results/store.")
        self._read = 0

    def check_writable(self) -> None:
        """Make the folder and check that a run can be written to it, by making, locking and removing a file there.

        Raises
        ------
        ConfigError
            If a file cannot be written and locked there. Permission bits are not read, because they say nothing for
            the user root or on a read-only mount.
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

        A folder whose record is damaged is set aside first, so that the run starts again in a new folder.
        """
        folder = self._folder(id)
        if self._damaged(id):
            self._move(id, ".set_aside", on_busy, lambda: self._damaged(id))
        return RunWriter(folder, config, resume=resume, overwrite=overwrite, on_busy=on_busy)

    def runs(self, *, config: bool = False) -> "pd.DataFrame":
        """The table of runs: one row for each finished run, of any status, in order of creation.

        Parameters
        ----------
        config : bool
            Whether to add every leaf of the configuration as a column ``config.<dotted key>``.

        Returns
        -------
        DataFrame
            ``id``, ``status``, ``reason``, the labels (``data``, ``model``, ``network``, ``prior``, ``likelihood``,
            ``inference``), ``seed``, ``split``, each metric by its name (nested ones joined by ``_``),
            ``seconds_<phase>``, ``num_grads_<phase>``, ``lanes``, ``peak_memory_bytes``, ``device``, ``warnings``
            (their number), ``created``. A value that a record does not have is missing (NaN or None).

        Warns
        -----
        UserWarning
            If records cannot be read. It names up to ten of these runs; all of them are left out.
        """
        return table.frame(self.rows(config=config))

    def rows(self, *, config: bool = False) -> list[dict[str, Any]]:
        """The rows of :meth:`runs` as dicts. A missing value is absent or None, and a NaN that was stored is a NaN."""
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

        A query names a column of the configuration in double quotes, as ``"config.<dotted key>"``. Lists are text, and
        so are all entries of a column that holds several types. A column of integers and floats holds floats.

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
            If the record is damaged or cannot be read, or a later bdlbench wrote it.
        """
        try:
            return self._read_record(id)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"id: the store '{self.path}' has no finished run '{id}'; list them first.") from None
        except OSError as error:
            raise StoreError(f"The record of run '{id}' cannot be read ({error.strerror}).") from error

    def _read_record(self, id: str) -> records.Record:
        """Read the record in a run's folder, and check that it is undamaged and belongs to this run."""
        folder = self._folder(id)
        refuse_link(folder)
        path = folder / "run.json"
        record = records.decode(read_regular(path), path)
        if record.get("id") != id:
            raise StoreError(f"The record '{path}' is that of another run, '{record.get('id')}'; delete this folder.")
        return record

    def has(self, id: str) -> bool:
        """Whether run ``id`` has a finished record, of any status, that is not damaged.

        Raises
        ------
        LaterSchema
            If a later bdlbench wrote the record. The run must not be run again, since that would overwrite it.
        """
        try:
            return bool(self.record(id))
        except LaterSchema:
            raise
        except (ConfigError, StoreError):
            return False

    def sound_record(self, id: str, note: Callable[[str], object] | None = None) -> records.Record | None:
        """The record of run ``id`` if neither it nor the files beside it are damaged; None otherwise.

        A damaged run is set aside, and ``note`` is called with a sentence about it. The sizes of the files are always
        compared. Their checksums are compared until this object has read ``VERIFIED_BYTES``, so that looking up a large
        sweep takes seconds. :meth:`verify` compares all checksums.
        """
        record, fault = self._look(id)
        if record is None or fault is None:
            self._sweep(id)
            return record
        if note is not None:
            note(f"{id}: set aside, to be run again: {fault}")
        with suppress(ConfigError):  # another process has moved it already
            self._move(id, ".set_aside", note or (lambda message: None), lambda: self._look(id)[1] is not None)
        return None

    def _sweep(self, id: str) -> None:
        """Delete the files that a killed process left beside a finished record, unless a process writes the run now."""
        folder = self._folder(id)
        archived = (folder / PosteriorArrays.ARCHIVE).exists() and (folder / "posterior.zarr").exists()
        if not (folder / "run.json").exists() or not ((folder / "checkpoint").exists() or archived):
            return
        lock = FolderLock(folder)
        with suppress(RunBusy, OSError):  # in a read-only store the files stay
            lock.acquire(None)
            try:
                if (folder / "run.json").exists():
                    sweep_leftovers(folder)
            finally:
                lock.release()

    def _look(self, id: str) -> tuple[records.Record | None, str | None]:
        """The record of a run, and a sentence about its damage. Each is None if it does not exist.

        A record that cannot be read is an empty dict. Checksums are compared as :meth:`sound_record` says.
        """
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
            if self._read <= VERIFIED_BYTES and (fault := _unlike(path, stored)):
                return record, fault
        return record, None

    def has_checkpoint(self, id: str) -> bool:
        """Whether run ``id`` is unfinished and has a checkpoint from which it can be resumed."""
        return [(self._folder(id) / name).exists() for name in ("checkpoint/state.npz", "run.json")] == [True, False]

    def deaths(self, id: str) -> int:
        """How many attempts at a run died without a handled signal and without progress; 0 while a process writes it."""
        return 0 if self.holder(id) else deaths(self._folder(id))

    def finished(self) -> list[str]:
        """Sorted ids of the runs with a record, which may be damaged."""
        return sorted(entry.name for entry in self._folders() if os.path.exists(f"{entry.path}/run.json"))

    def unfinished(self) -> list[str]:
        """Sorted ids of the runs without a record: they are in progress or were stopped."""
        return sorted(entry.name for entry in self._folders() if not os.path.exists(f"{entry.path}/run.json"))

    def holder(self, id: str) -> str | None:
        """The process that is writing a run now, as ``process 123 on host``; None if no process is."""
        return holder(self._folder(id))

    def find(self, prefix: str, *, unfinished: bool = False) -> str:
        """The id of the only run whose id begins with ``prefix``, or is ``prefix`` exactly.

        Finished runs are searched, and with ``unfinished`` also the unfinished ones.

        Raises
        ------
        ConfigError
            If no id or several ids begin with ``prefix``. Up to ten candidates are named.
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
        """The run's draws as a DataTree of the ArviZ schema. Values are read from disk when they are used.

        The values at test rows are in ``predictions``, ``log_likelihood_test`` and ``predictions_constant_data``. This
        also holds for runs that were stored with schema 1, which had other names for these groups.

        Raises
        ------
        ConfigError
            If the run stored no draws.
        StoreError
            If the folder of the draws holds something that bdlbench does not write.
        """
        import xarray as xr

        refuse_link(self._folder(id))
        archive, folder = (self._folder(id) / name for name in (PosteriorArrays.ARCHIVE, "posterior.zarr"))
        if archive.is_file() and (self._folder(id) / "run.json").exists():
            from zarr.storage import ZipStore

            refuse_codecs(archive)
            tree = xr.open_datatree(ZipStore(archive, mode="r"), engine="zarr")  # type: ignore[arg-type]
        elif folder.is_dir():
            refuse_codecs(folder)
            tree = xr.open_datatree(folder, engine="zarr")
        else:
            raise ConfigError(f"id: run '{id}' in '{self.path}' stored no draws; choose a run that is complete.")
        if "posterior_predictive" in tree.children:  # a group of schema 1 that schema 2 does not have
            tree.children = {EARLIER.get(name, name): group for name, group in tree.children.items()}
        return tree

    def curve(self, id: str) -> "pd.DataFrame":
        """Scores of the posterior so far, with the gradients, seconds and draws spent on it; a row for each mark.

        These are the lines of ``curve.jsonl``. The curve of a run in progress can be read too. A last line that is
        still being written is left out.

        Raises
        ------
        ConfigError
            If there is no run ``id`` with a curve.
        StoreError
            If the curve is damaged.
        """
        import pandas as pd

        path = self._folder(id) / "curve.jsonl"
        try:
            text = read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"id: the store '{self.path}' has no curve of a run '{id}'; list the runs.") from None
        try:
            return pd.DataFrame([records.decode_line(line) for line in text.split(b"\n")[:-1]])
        except ValueError as error:
            raise StoreError(f"The curve '{path}' is damaged ({error}); delete its run and run it again.") from error

    def verify(self, id: str) -> list[str]:
        """Check the record of a finished run and the checksum of each of its files; return a sentence for each fault.

        A lost chunk is found here, whereas Zarr reads it as fill values without an error.

        Raises
        ------
        ConfigError
            If there is no finished run ``id``.
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
            elif fault := _unlike(path, stored):
                faults.append(fault)
        return faults

    def amend(self, id: str, change: Callable[[records.Record], records.Record]) -> records.Record:
        """Replace the record of a finished run by a changed one, in one rename, and return the new record.

        Parameters
        ----------
        id : str
        change : callable (record) -> record
            Receives the stored record while this process holds the run's lock, and returns the changed one.

        Raises
        ------
        RunBusy
            If a process is writing the run.
        ConfigError
            If there is no finished run ``id``.
        """
        lock = FolderLock(self._folder(id))
        self.record(id)  # raises if there is no record: such a folder must not get a lock file
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
        """Delete a run, finished or unfinished. With ``unless_complete`` a run whose status is complete is kept.

        The folder is first renamed, so the run is out of the store at once, before its files are deleted.

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
        """Move the folder of a run to ``.set_aside/`` in the store. Raises the errors of :meth:`delete`."""
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
            if not still_wanted():  # the process that this one waited for has repaired the run
                return
            (self.path / where).mkdir(exist_ok=True)
            place = tempfile.mkdtemp(prefix=f"{id}.", dir=self.path / where)
            os.replace(folder, place)  # a folder may be renamed to the name of an empty folder
            shutil.rmtree(self.path / RERUNS / id, ignore_errors=True)
        finally:
            lock.release()
        if where == ".deleted":
            shutil.rmtree(place)

    def _damaged(self, id: str) -> bool:
        return (self._folder(id) / "run.json").exists() and not self.has(id)

    def _folder(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise ConfigError(f"id: '{id}' is no run id; use letters, digits and _ . , = + @ - only.")
        folder = self.path / id
        if not folder.exists():
            self._settle(id)
        return folder

    def _settle(self, id: str) -> None:
        """Do the second rename of a rerun that was killed after the first; see :class:`RunWriter`."""
        made = self.path / RERUNS / id
        if (made / "run.json").exists() and not made.is_symlink() and not (self.path / id).exists():
            with suppress(OSError):  # another process did it, or this one may not write
                os.rename(made, self.path / id)

    def _folders(self) -> Iterator[os.DirEntry[str]]:
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self.path / RERUNS):
                self._settle(name)
        try:
            with os.scandir(self.path) as entries:
                yield from (entry for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return


def _unlike(path: Path, stored: Mapping[str, Any]) -> str | None:
    """A sentence that a file or folder does not fit its stored checksum or cannot be read; None if it fits."""
    if path.is_dir() and path.suffix != ".zarr":  # an empty folder has the checksum of an empty file
        return f"'{path}' is a folder, not a file."
    try:
        return None if checksum(path) == stored else f"'{path}' does not fit its checksum."
    except FileNotFoundError:
        return f"'{path}' is missing."
    except StoreError as error:
        return str(error)
