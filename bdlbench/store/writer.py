"""One run being written: its folder is held, filled, and made to count by the rename of its record."""

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
"""What lies beside the record and is covered by its checksums."""


class RunWriter:
    """Context manager that writes one run; made by :meth:`bdlbench.store.Store.writer`.

    Inside it the run's folder is locked. Until :meth:`finish` the run does not count: whatever ends the context
    earlier leaves a folder without a record, which the next attempt wipes or, with ``resume``, continues.

    Parameters
    ----------
    folder : Path
        The run's own folder; its name is the run's id.
    config : mapping
        Resolved configuration of plain values: the whole record of what was asked.
    resume : bool
        Keep what an unfinished attempt left, if it left a checkpoint.
    overwrite : bool, or callable () -> bool
        Write the run again although a record exists. A callable is asked once the folder is held, when no other
        process can change the answer.
    on_busy : callable (message), optional
        Called once if another process writes the run, which is then waited for.

    Raises
    ------
    RunBusy
        On entering, if another process writes the run and ``on_busy`` is None.
    RunExists
        On entering, if the run is finished (perhaps by the process waited for) and ``overwrite`` is False.
    StoreError
        From any method, if the disk is full.
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
                    shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)  # left by a kill just after finish
                    raise RunExists(f"Run {self.folder.name} is finished already.")
                if not (self.resume and self._checkpoint_path.exists()) or overwrite:
                    # The record goes first, so that a kill in between leaves no record of half the files.
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
        """Make room for one variable of the posterior's DataTree.

        Parameters
        ----------
        group : str
            ``posterior``, ``sample_stats``, ``posterior_predictive``, ``log_likelihood`` or ``observed_data``.
        name : str
            The site's name.
        shape : sequence of int
            The whole variable: ``(chains, draws, ...)`` with the planned number of draws, or any shape without draws.
        dtype : dtype
            Float, integer or bool; blocks must have the same.
        dims : sequence of str
            A name for each axis; draws come first as ``("chain", "draw", ...)``.
        coords : mapping from dim to values, optional
            Labels along a dim, numbers or text. Chains and draws are numbered from 0 where they are not given.
        chunk_draws : int, optional
            Draws to a Zarr chunk: best the block that :meth:`write` will be handed. All draws where None.

        Raises
        ------
        ValueError
            If dims and shape disagree with each other or with another variable of the group.
        """
        self._open_curve()
        with clear_disk_errors(self.folder):
            self._arrays.allocate(group, name, shape, dtype, dims, coords, chunk_draws)

    def write(self, group: str, name: str, start_draw: int, array: Any) -> None:
        """Write ``array`` (chains, k, ...) as draws ``start_draw`` to ``start_draw + k``, or a whole array at 0.

        A few MB wait in memory until the next checkpoint or the end.

        Raises
        ------
        ValueError
            If the shape does not fit or draws would be left out between the last one written and ``start_draw``.
        TypeError
            If the dtype is not the allocated one: nothing is cast silently.
        """
        self._open_curve()
        with clear_disk_errors(self.folder):
            self._arrays.write(group, name, start_draw, array)

    def read_columns(self, group: str, name: str, start: int, stop: int) -> np.ndarray:
        """Columns ``start`` to ``stop`` of the last axis, (chain, draw, ..., k): the draws written so far.

        Diagnostics run over columns in chunks with this, so that their memory is bounded too.
        """
        self._open_curve()
        return self._arrays.read_columns(group, name, start, stop)

    def append_curve(self, point: Mapping[str, Any]) -> None:
        """Append a line to ``curve.jsonl``: scores of the running posterior at a price. Written when this returns."""
        curve = self._open_curve()
        with clear_disk_errors(self.folder):
            line, end = records.encode_line(point), curve.tell()
            try:
                if curve.write(line) != len(line):  # a full disk takes a part without complaint
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                curve.truncate(end)
                raise

    def checkpoint(self, arrays: Mapping[str, Any]) -> None:
        """Store the loop's state, replacing the last one in one step: a crash leaves the old state or the new.

        Parameters
        ----------
        arrays : mapping from name to array
            Numpy arrays of native dtypes (JAX keys by ``key_data``, bfloat16 by a view).
        """
        curve = self._open_curve()
        with clear_disk_errors(self.folder):
            self._arrays.flush()
        state = {f"array/{name}": np.asarray(value) for name, value in arrays.items()}
        for name, value in state.items():
            if value.dtype.kind not in "fiubcUS":
                raise TypeError(f"The checkpoint's {name} has dtype {value.dtype}, which npz does not keep.")
        # What was written after the checkpoint is written again by the run that resumes from it.
        progress = {
            "written": self._arrays.written,
            "curve_bytes": curve.tell(),
            "curve_crc32": zlib.crc32((self.folder / "curve.jsonl").read_bytes()),
        }
        state["progress"] = np.array(json.dumps(progress))
        with clear_disk_errors(self.folder):
            # A state that survives a power cut is worth nothing without the draws that came before it.
            self._synced.sync(self.folder / "posterior.zarr")
            sync_folder(self.folder / "curve.jsonl")
            self._checkpoint_path.parent.mkdir(exist_ok=True)
            replace_file(self._checkpoint_path, lambda file: np.savez(file, allow_pickle=False, **state))

    def load_checkpoint(self, note: Callable[[str], object] | None = None) -> dict[str, np.ndarray] | None:
        """The arrays of the last checkpoint, with draws and curve set back to it; None where there is none.

        A checkpoint that is damaged (npz keeps a CRC of each array), or that does not fit the draws and the curve
        beside it, is set aside as ``checkpoint/state.damaged``, which ``note`` is told of (a warning without it), the
        rest of the attempt is wiped, and None is returned: the run starts over.
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
        """Set the checkpoint aside, as ``checkpoint/state.damaged``, and wipe the draws and the curve before it."""
        curve = self._open_curve()
        if self._checkpoint_path.exists():
            self._checkpoint_path.replace(self._checkpoint_path.with_suffix(".damaged"))
        wipe_folder(self.folder, keep=(".lock", "config.yaml", "curve.jsonl", "checkpoint"))
        curve.truncate(0)
        curve.seek(0)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")

    def drop_draws(self) -> None:
        """Forget all draws, written or waiting: the record of a run whose draws cannot be stored is worth having."""
        shutil.rmtree(self.folder / "posterior.zarr", ignore_errors=True)
        self._arrays = PosteriorArrays(self.folder / "posterior.zarr")

    def finish(self, record: Mapping[str, Any]) -> records.Record:
        """Make the run count: cut the arrays to the draws written, take checksums, put the record in place last.

        The record needs ``status`` (complete, diverged or failed), ``labels``, ``metrics``, ``seconds``,
        ``num_grads``, ``device``, ``versions`` and ``warnings``, and a ``reason`` unless it is complete; ``id``,
        ``schema``, ``config`` and ``files`` are added here. Non-finite floats are kept, see
        :func:`bdlbench.store.records.encode`. The checkpoint is deleted once the record is in place, so that a kill
        at any instant leaves the one or the other.

        Returns
        -------
        dict
            The record as stored.
        """
        curve = self._open_curve()
        folder = self.folder
        whole = records.validated(record, folder.name, self.config)
        records.encode(whole)  # a value that cannot be stored is found before anything is touched
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
