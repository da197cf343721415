"""Write one run: lock its folder, fill it, and put its record in place last."""

import errno
import json
import os
import shutil
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
from bdlbench.store.errors import RunExists, clear_disk_errors
from bdlbench.store.files import (
    FolderLock,
    Synced,
    checksum,
    refuse_link,
    replace_file,
    sync_folder,
    wipe_folder,
    wipe_leftovers,
)

STORED = ("config.yaml", "curve.jsonl", "posterior.zarr")
"""The files and the folder beside the record whose checksums the record holds."""


class RunWriter:
    """Context manager that writes one run; made by :meth:`bdlbench.store.Store.writer`.

    The run's folder is locked inside the context. The run counts as finished only after :meth:`finish`. If the context
    ends earlier, the folder has no record, and the next attempt empties it or, with ``resume``, continues from its
    checkpoint.

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
        self.folder = folder
        self.config = config
        self.resume = resume
        self.overwrite = overwrite
        self._on_busy = on_busy
        self._lock = FolderLock(folder)
        self._arrays = PosteriorArrays(folder / "posterior.zarr")
        self._synced = Synced()
        self._curve: FileIO | None = None
        self._entered = False

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint" / "state.npz"

    def __enter__(self) -> "RunWriter":
        refuse_link(self.folder)
        with clear_disk_errors(self.folder):
            self._lock.acquire(self._on_busy)
            try:
                overwrite = self.overwrite() if callable(self.overwrite) else self.overwrite
                if (self.folder / "run.json").exists() and not overwrite:
                    shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)  # left by a kill after finish
                    raise RunExists(f"Run {self.folder.name} is finished already.")
                if not (self.resume and self._checkpoint_path.exists()) or overwrite:
                    # The record is deleted first, so that a kill in between leaves no record of deleted files.
                    (self.folder / "run.json").unlink(missing_ok=True)
                    wipe_folder(self.folder)
                wipe_leftovers(self.folder)
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
        self._entered = False
        if self._curve is not None:
            self._curve.close()
        self._lock.release()

    def _open_curve(self) -> FileIO:
        if not self._entered or self._curve is None:
            raise RuntimeError("A RunWriter is used inside its 'with' block, before finish().")
        return self._curve

    def allocate(
        self,
        group: str,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        dims: Sequence[str],
        coords: Mapping[str, Any] | None = None,
        chunk_draws: int | None = None,
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
            self._arrays.allocate(group, name, shape, dtype, dims, coords, chunk_draws)

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
            with open(self._checkpoint_path, "rb") as stored, np.load(stored, allow_pickle=False) as file:
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
        wipe_folder(self.folder, keep=(".lock", "config.yaml", "curve.jsonl", "checkpoint"))
        curve.truncate(0)
        curve.seek(0)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")

    def drop_draws(self) -> None:
        """Delete all draws, written or waiting, so that a run whose draws cannot be stored still gets a record."""
        shutil.rmtree(self.folder / "posterior.zarr", ignore_errors=True)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")

    def finish(self, record: Mapping[str, Any]) -> records.Record:
        """Finish the run: cut the arrays to the draws written, compute checksums, and put the record in place last.

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
            replace_file(folder / "run.json", lambda file: file.write(text))
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        self._close()
        return records.decode(text, folder / "run.json")
