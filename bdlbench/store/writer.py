"""Write one run: lock its folder, fill it, and put its record in place last."""

import errno
import json
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml

from bdlbench.store import records
from bdlbench.store.arrays import PosteriorArrays
from bdlbench.store.errors import FolderGone, RunExists, StoreError, clear_disk_errors
from bdlbench.store.files import (
    FolderLock,
    Synced,
    checksum,
    open_regular,
    read_regular,
    refuse_link,
    replace_file,
    sync_folder,
    wipe_folder,
    wipe_leftovers,
)

STORED = ("config.yaml", "curve.jsonl", PosteriorArrays.ARCHIVE)
"""The files beside the record whose checksums the record holds."""
ATTEMPT = ".attempt"
"""File in a run's folder while a process writes it. It stays only if the process is killed and cannot delete it."""
RERUNS = ".rerun"
"""Folder in the store for runs that are being made again while their finished record still counts."""


def sweep_leftovers(folder: Path) -> None:
    """Delete what a killed process left beside the record of a finished run: the checkpoint and the files it needed."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / ATTEMPT).unlink(missing_ok=True)
    if (folder / PosteriorArrays.ARCHIVE).exists():  # a run of an older version has only the folder and no archive
        shutil.rmtree(folder / "posterior.zarr", ignore_errors=True)


def deaths(folder: Path) -> int:
    """How many attempts at a run died one after another without a handled signal and without a new checkpoint.

    An attempt that left a new checkpoint has made progress, so the deaths before it do not count.
    """
    try:
        found = json.loads(read_regular(folder / ATTEMPT))
        return 1 + int(found["deaths"]) if found["checkpoint"] == _last_checkpoint(folder) else 0
    except (OSError, StoreError, ValueError, KeyError, TypeError):
        return 0


def _last_checkpoint(folder: Path) -> list[int] | None:
    try:
        about = (folder / "checkpoint" / "state.npz").stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


class RunWriter:
    """Context manager that writes one run; made by :meth:`bdlbench.store.Store.writer`.

    The run's folder is locked inside the context. The run counts as finished only after :meth:`finish`. If the context
    ends earlier, the folder has no record, and the next attempt empties it or, with ``resume``, continues from its
    checkpoint.

    A run that is written again although it is complete or diverged is written to a folder of its name in ``.rerun``.
    The old run counts until the new one is finished. Then :meth:`finish` moves the old folder away and the new one into
    its place. After a kill between these two renames, the store finds no run of this id but a finished one in
    ``.rerun``, and does the second rename itself. If the new attempt fails, the old run stays.

    Parameters
    ----------
    folder : Path
        The run's own folder; its name is the run's id.
    config : mapping
        The whole resolved configuration of the run, as plain values.
    resume : bool
        Keep the files of an unfinished attempt if it left a checkpoint.
    overwrite : bool, or callable () -> bool
        Write the run again although it has a record. A callable is called after the folder is locked, when no other
        process can change the answer.
    on_busy : callable (message), optional
        Called once if another process is writing the run. This process then waits for it.

    Raises
    ------
    RunBusy
        On entering, if another process is writing the run and ``on_busy`` is None.
    RunExists
        On entering, if the run is finished and ``overwrite`` is False. The process that this one waited for may have
        finished it.
    StoreError
        On entering, if the folder is a symbolic link; from any method that writes, if the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool | Callable[[], bool] = False,
        on_busy: Callable[[str], object] | None = None,
    ) -> None:
        self.home = folder
        self.folder = folder
        """Where the run is written: ``home``, or the folder in ``.rerun`` until it takes the place of ``home``."""
        self.config = config
        self.resume = resume
        self.overwrite = overwrite
        self._on_busy = on_busy
        self._locks = [FolderLock(folder)]
        self._arrays = PosteriorArrays(folder / "posterior.zarr")
        self._synced = Synced()
        self._curve: FileIO | None = None
        self._entered = False

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint" / "state.npz"

    def __enter__(self) -> "RunWriter":
        refuse_link(self.home)
        with clear_disk_errors(self.home):
            self._locks[0].acquire(self._on_busy)
            try:
                overwrite = self.overwrite() if callable(self.overwrite) else self.overwrite
                if (self.home / "run.json").exists() and not overwrite:
                    sweep_leftovers(self.home)
                    raise RunExists(f"Run {self.home.name} is finished already.")
                if self._has_result():
                    self._begin_rerun()
                    overwrite = False
                died = 0 if overwrite else deaths(self.folder)
                if not (self.resume and self._checkpoint_path.exists()) or overwrite:
                    # The record is deleted first, so that a kill in between leaves no record of deleted files.
                    (self.folder / "run.json").unlink(missing_ok=True)
                    wipe_folder(self.folder)
                wipe_leftovers(self.folder)
                attempt = json.dumps({"deaths": died, "checkpoint": _last_checkpoint(self.folder)})
                (self.folder / ATTEMPT).write_text(attempt)
                text = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True)
                replace_file(self.folder / "config.yaml", lambda file: file.write(text.encode()))
                self._curve = open(self.folder / "curve.jsonl", "ab", buffering=0)
            except BaseException:
                self._close()
                raise
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if all(lock.is_there() for lock in self._locks):
            (self.folder / ATTEMPT).unlink(missing_ok=True)
        self._entered = False
        if self._curve is not None:
            self._curve.close()
        for lock in self._locks:
            lock.release()

    def _has_result(self) -> bool:
        """Whether the run has a record that must be kept until there is a new one. A failed run has none."""
        path = self.home / "run.json"
        try:
            return records.decode(read_regular(path), path)["status"] != "failed"
        except (OSError, StoreError, KeyError):
            return False

    def _begin_rerun(self) -> None:
        self.folder = self.home.parent / RERUNS / self.home.name
        refuse_link(self.folder)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")
        self._locks.append(FolderLock(self.folder))
        self._locks[-1].acquire(self._on_busy)
        if (self.folder / "run.json").exists():  # a process was killed between this record and the renames
            self._take_place()
            raise RunExists(f"Run {self.home.name} had been made again already.")

    def _take_place(self) -> None:
        """Put the finished folder of a rerun in the place of the old one."""
        sweep_leftovers(self.folder)
        (self.home.parent / ".deleted").mkdir(exist_ok=True)
        old = tempfile.mkdtemp(prefix=f"{self.home.name}.", dir=self.home.parent / ".deleted")
        os.replace(self.home, old)
        os.replace(self.folder, self.home)
        sync_folder(self.home.parent)
        self.folder = self.home
        shutil.rmtree(old, ignore_errors=True)

    @property
    def gone(self) -> bool:
        """Whether another process removed or renamed the run's folder while this writer held its lock."""
        return self._entered and not all(lock.is_there() for lock in self._locks)

    def _open_curve(self) -> FileIO:
        if not self._entered or self._curve is None:
            raise RuntimeError("A RunWriter is used inside its 'with' block, before finish().")
        self.check_there()
        return self._curve

    def check_there(self) -> None:
        """Raise :class:`~bdlbench.store.errors.FolderGone` if the run's folder is :attr:`gone`.

        Writing would make a new folder that no process has locked.
        """
        if self.gone:
            raise FolderGone(
                f"store.path: the folder '{self.folder}' was removed while its run was being written; leave a store alone"
                " while a command writes to it, and run the same command again."
            )

    def allocate(
        self,
        group: str,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        dims: Sequence[str],
        coords: Mapping[str, Any] | None = None,
        chunk_draws: int | None = None,
        packing: tuple[float, float] | None = None,
    ) -> None:
        """Declare one variable of the posterior's DataTree: its shape, type, dims and labels.

        Parameters
        ----------
        group : str
            One of :data:`bdlbench.store.arrays.GROUPS`.
        name : str
            The site's name.
        shape : sequence of int
            Shape of the whole variable: ``(chains, draws, ...)`` with the planned number of draws, or any shape for a
            variable without draws.
        dtype : dtype
            Float, integer or bool. Blocks must have the same dtype.
        dims : sequence of str
            A name for each axis. The dims of draws begin with ``("chain", "draw")``.
        coords : mapping from dim to values, optional
            Labels along a dim, as numbers or text. Chains and draws without labels are numbered from 0.
        chunk_draws : int, optional
            Number of draws in a Zarr chunk; the number in a block that :meth:`write` receives is best. If it is None, a
            chunk holds as many draws as fit into 16 MiB (:data:`bdlbench.store.layout.CHUNK_BYTES`).
        packing : (scale, offset), optional
            The stored numbers v stand for ``v * scale + offset`` in float64. Xarray and :meth:`read_columns` return the
            latter.

        Raises
        ------
        ValueError
            If dims and shape do not agree with each other or with another variable of the group, or the variable was
            declared already.
        TypeError
            If the dtype is not float, integer or bool.
        ConfigError
            If the name is empty or contains '/'.
        """
        self._open_curve()
        with clear_disk_errors(self.folder):
            self._arrays.allocate(group, name, shape, dtype, dims, coords, chunk_draws, packing)

    def write(self, group: str, name: str, start_draw: int, array: Any) -> None:
        """Write ``array`` (chains, k, ...) as draws ``start_draw`` to ``start_draw + k - 1``.

        A variable without draws is written whole, at ``start_draw`` 0. Blocks wait in memory until they are larger than
        :data:`bdlbench.store.arrays.BUFFER_BYTES` (4 MiB) together, or until the next checkpoint or the end of the run.

        Raises
        ------
        ValueError
            If the shape does not fit, or there would be a gap between the last draw written and ``start_draw``.
        TypeError
            If the dtype is not the declared one. Values are never cast.
        """
        self._open_curve()
        with clear_disk_errors(self.folder):
            self._arrays.write(group, name, start_draw, array)

    def read_columns(self, group: str, name: str, start: int, stop: int) -> np.ndarray:
        """Columns ``start`` to ``stop - 1`` of the last axis, for all draws written so far: (chains, draws, ..., k).

        Diagnostics read a few columns at a time with it, so that they need little memory. A variable of shape (chains,
        draws) has one column.

        Raises
        ------
        ValueError
            If the variable was not declared or has no draws.
        """
        self._open_curve()
        return self._arrays.read_columns(group, name, start, stop)

    def append_curve(self, point: Mapping[str, Any]) -> None:
        """Append one line to ``curve.jsonl``: scores of the posterior so far, and the gradients and seconds it took.

        The line is in the file when this method returns.
        """
        curve = self._open_curve()
        with clear_disk_errors(self.folder):
            line, end = records.encode_line(point), curve.tell()
            try:
                if curve.write(line) != len(line):  # a full disk may accept a part without an error
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                curve.truncate(end)
                raise

    def checkpoint(self, arrays: Mapping[str, Any]) -> None:
        """Store the state of the loop. It replaces the last one in one step: a crash leaves the old or the new state.

        Parameters
        ----------
        arrays : mapping from name to array
            NumPy arrays of native dtypes. JAX keys are given as their ``key_data``, bfloat16 as a view.
        """
        curve = self._open_curve()
        with clear_disk_errors(self.folder):
            self._arrays.flush()
        state = {f"array/{name}": np.asarray(value) for name, value in arrays.items()}
        for name, value in state.items():
            if value.dtype.kind not in "fiubcUS":
                raise TypeError(f"The checkpoint's {name} has dtype {value.dtype}, which npz does not keep.")
        # A run that resumes from this checkpoint writes all later draws and lines again.
        progress = {
            "written": self._arrays.written,
            "curve_bytes": curve.tell(),
            "curve_crc32": zlib.crc32((self.folder / "curve.jsonl").read_bytes()),
        }
        state["progress"] = np.array(json.dumps(progress))
        with clear_disk_errors(self.folder):
            # The draws before the checkpoint must survive a power cut too, so they are synced before the state.
            self._synced.sync(self.folder / "posterior.zarr")
            sync_folder(self.folder / "curve.jsonl")
            self._checkpoint_path.parent.mkdir(exist_ok=True)
            replace_file(self._checkpoint_path, lambda file: np.savez(file, allow_pickle=False, **state))

    def load_checkpoint(self, note: Callable[[str], object] | None = None) -> dict[str, np.ndarray] | None:
        """Load the arrays of the last checkpoint and set draws and curve back to it; None if there is no checkpoint.

        A checkpoint is damaged if the CRC of one of its arrays is wrong, or if it does not agree with the draws and the
        curve beside it. Then it is renamed to ``checkpoint/state.damaged``, ``note`` is called with a sentence about it
        (without ``note`` it is a warning), the other files of the attempt are deleted, and None is returned. The run
        then starts from its beginning.
        """
        curve = self._open_curve()
        if not self._checkpoint_path.exists():
            return None
        try:
            with open_regular(self._checkpoint_path) as stored, np.load(stored, allow_pickle=False) as file:
                arrays = {name.removeprefix("array/"): file[name] for name in file.files if name != "progress"}
                progress = json.loads(str(file["progress"]))
            before = (self.folder / "curve.jsonl").read_bytes()[: progress["curve_bytes"]]
            if len(before) < progress["curve_bytes"] or zlib.crc32(before) != progress["curve_crc32"]:
                raise ValueError("curve.jsonl has changed")
            self._arrays.check(progress["written"])
        except (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            message = f"The checkpoint of run {self.folder.name} is damaged ({error}); it starts over."
            warnings.warn(message, stacklevel=2) if note is None else note(message)
            self.start_over()
            return None
        curve.truncate(progress["curve_bytes"])
        curve.seek(progress["curve_bytes"])
        self._arrays.written.update(progress["written"])
        return arrays

    def start_over(self) -> None:
        """Rename the checkpoint to ``checkpoint/state.damaged``, and delete all draws and all lines of the curve."""
        curve = self._open_curve()
        if self._checkpoint_path.exists():
            self._checkpoint_path.replace(self._checkpoint_path.with_suffix(".damaged"))
        wipe_folder(self.folder, keep=(".lock", ATTEMPT, "config.yaml", "curve.jsonl", "checkpoint"))
        curve.truncate(0)
        curve.seek(0)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")

    def drop_draws(self) -> None:
        """Delete all draws, written or waiting, so that a run whose draws cannot be stored still gets a record."""
        shutil.rmtree(self.folder / "posterior.zarr", ignore_errors=True)
        (self.folder / PosteriorArrays.ARCHIVE).unlink(missing_ok=True)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")

    def finish(self, record: Mapping[str, Any]) -> records.Record:
        """Finish the run: put the draws into one archive, compute checksums, and put the record in place last.

        The record needs ``status`` (complete, diverged or failed), ``labels``, ``metrics``, ``seconds``,
        ``num_grads``, ``device``, ``versions`` and ``warnings``, and a ``reason`` unless the run is complete. This
        method adds ``id``, ``schema``, ``config``, ``files`` and, if it is not given, ``created``. Non-finite floats
        are kept, see :func:`bdlbench.store.records.encode`. The checkpoint is deleted after the record is in place, so
        a process that is killed at any instant leaves at least one of them.

        Raises
        ------
        ValueError
            If the record lacks a field or has a wrong one, see :func:`bdlbench.store.records.validated`.
        TypeError
            If a value of the record cannot be stored.

        Returns
        -------
        dict
            The record as stored.
        """
        curve = self._open_curve()
        folder = self.folder
        whole = records.validated(record, folder.name, self.config)
        records.encode(whole)  # this raises for a value that cannot be stored, before any file is changed
        with clear_disk_errors(folder):
            curve.close()
            notes = self._arrays.close()
            whole["warnings"] = [*whole["warnings"], *notes]
            whole["files"] = {name: checksum(folder / name) for name in STORED if (folder / name).exists()}
            text = records.encode(whole)
            if folder != self.home and whole["status"] == "failed":  # the old run, which did not fail, is kept
                shutil.rmtree(folder, ignore_errors=True)
            else:
                replace_file(folder / "run.json", lambda file: file.write(text))
                if folder == self.home:
                    sweep_leftovers(folder)
                else:
                    self._take_place()
        self._close()
        return records.decode(text, self.home / "run.json")
