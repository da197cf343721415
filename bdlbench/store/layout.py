"""How a variable of the posterior lies in Zarr, and how a posterior that fits in memory is written in one go."""

import asyncio
import itertools
import math
import os
import shutil
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 16 * 2**20
"""Largest chunk, uncompressed: a wide last axis is split rather than have one chunk outgrow it."""


@dataclass
class Variable:
    """One variable: what was asked for, what waits to be written, and its array once it is in the folder."""

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    dims: tuple[str, ...]
    chunks: tuple[int, ...]
    coords: dict[str, np.ndarray]
    array: Any = None
    waiting: list[np.ndarray] = field(default_factory=list)

    @property
    def has_draws(self) -> bool:
        """Whether blocks of draws are written, or the whole at once."""
        return "draw" in self.dims

    def waiting_values(self) -> np.ndarray:
        """What waits, as one array."""
        return np.concatenate(self.waiting, 1) if self.has_draws else self.waiting[0]

    def options(self) -> dict[str, Any]:
        """What Zarr is asked for."""
        from zarr.codecs import ZstdCodec

        return {
            "shape": self.shape,
            "dtype": self.dtype,
            "chunks": self.chunks,
            "dimension_names": self.dims,
            "fill_value": math.nan if self.dtype.kind == "f" else None,
            # Draws are noise: a higher level buys nothing; the checksum makes a flipped chunk an error when it is read.
            "compressors": [ZstdCodec(level=1, checksum=True)],
            # A chunk that is not there would read as its fill value, whether it was lost or left out.
            "config": {"write_empty_chunks": True},
        }


def coordinate(dim: str, values: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """What Zarr is asked for along a dim, and the values as it takes them."""
    text = values.dtype.kind in "UOT"
    options: dict[str, Any] = {"shape": values.shape, "dtype": "str" if text else values.dtype}
    options |= {"chunks": (max(1, values.size),), "dimension_names": (dim,), "config": {"write_empty_chunks": True}}
    return options, values.astype(object) if text else values


def attributes() -> dict[str, Any]:
    """Of the root and of each group."""
    return {"creation_library": "bdlbench", "created_at": datetime.now(UTC).isoformat(timespec="seconds")}


def chunks(shape: tuple[int, ...], dtype: np.dtype, has_draws: bool, chunk_draws: int | None) -> tuple[int, ...]:
    """All chains and ``chunk_draws`` draws to a chunk, later axes split where a chunk would outgrow ``CHUNK_BYTES``."""
    out = [max(1, size) for size in shape]
    rest = 0
    if has_draws:
        rest = 2
        if chunk_draws is None:
            chunk_draws = CHUNK_BYTES // (math.prod(out) // out[1] * dtype.itemsize)
        out[1] = max(1, min(chunk_draws, out[1]))
    for axis in reversed(range(rest, len(out))):  # the last axis first: diagnostics read it by columns
        size = math.prod(out) * dtype.itemsize
        if size > CHUNK_BYTES:
            out[axis] = max(1, out[axis] // math.ceil(size / CHUNK_BYTES))
    return tuple(out)


def kept_draws(group: str, written: dict[str, int]) -> tuple[int, list[str]]:
    """Draws that all of a group's variables have, by name the draws written, and a note where some have more.

    xarray demands one number of draws a group, so a run that broke off between two variables is cut to the shorter.
    """
    kept = min(written.values(), default=0)
    cut = [name for name in sorted(written) if written[name] > kept]
    return kept, [f"{group}: {', '.join(cut)} cut to the {kept} draws that the others have."] if cut else []


def write_whole(path: Path, variables: Sequence[Variable]) -> list[str]:
    """Write all that waits as a folder of its own, cut and consolidated; returns what was cut.

    Zarr makes an array in several turns through its event loop, milliseconds each where every turn begins and ends in
    another thread. Here they are one task over a store in memory, whose files are then put in place, all or none. The
    next posterior of the same form, as that of a sweep's next run, writes its values into the same arrays.
    """
    global _last
    notes: list[str] = []
    grouped = itertools.groupby(sorted(variables, key=lambda v: (v.group, v.name)), key=lambda v: v.group)
    groups = {group: list(some) for group, some in grouped}
    for group, some in groups.items():
        kept, cut = kept_draws(group, {v.name: v.waiting_values().shape[1] for v in some if v.has_draws})
        notes += cut
        groups[group] = [_cut(v, kept) for v in some]
    whole = list(itertools.chain.from_iterable(groups.values()))
    form = tuple(_form(variable) for variable in whole)
    with _lock:
        made = _last if _last is not None and _last.form == form else None
        with ThreadPoolExecutor(1) as pool:  # the caller's thread may have an event loop, as a notebook's has
            made = _last = pool.submit(asyncio.run, _write(made, form, whole)).result()
        files = {key: buffer.to_bytes() for key, buffer in made.held.items()}
    stamps = (made.created_at.encode(), attributes()["created_at"].encode())
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for folder in {os.path.dirname(key) for key in files}:
            (part / folder).mkdir(parents=True, exist_ok=True)
        for key, data in files.items():
            (part / key).write_bytes(data.replace(*stamps) if key.endswith("zarr.json") else data)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return notes


def _cut(variable: Variable, kept: int) -> Variable:
    values = variable.waiting_values()
    if not variable.has_draws:
        return Variable(**{**vars(variable), "waiting": [values]})
    shape = (variable.shape[0], kept, *variable.shape[2:])
    return Variable(**{**vars(variable), "shape": shape, "waiting": [values[:, :kept]]})


@dataclass
class _Made:
    """A posterior's files in memory: their contents by name, and the arrays through which all but labels are written."""

    form: tuple[Any, ...]
    created_at: str
    held: dict[str, Any] = field(default_factory=dict)
    arrays: list[Any] = field(default_factory=list)


_last: _Made | None = None
"""Of the posterior written last: 4 MiB at most, see ``BUFFER_BYTES``."""
_lock = threading.Lock()


def _form(variable: Variable) -> tuple[Any, ...]:
    """All of a variable but its values."""
    labels = tuple((dim, values.dtype.str, tuple(values.tolist())) for dim, values in variable.coords.items())
    v = variable
    return v.group, v.name, v.shape, v.dtype.str, v.dims, v.chunks, labels


async def _write(made: _Made | None, form: tuple[Any, ...], variables: Sequence[Variable]) -> _Made:
    """The files of ``variables``, in the arrays of ``made`` where it has their form."""
    if made is None:
        made = await _make(form, variables)
    for array, variable in zip(made.arrays, variables, strict=True):
        await array.setitem(..., variable.waiting[0])
    return made


async def _make(form: tuple[Any, ...], variables: Sequence[Variable]) -> _Made:
    """Groups, arrays without values, labels and consolidated metadata."""
    import zarr.api.asynchronous as zarr
    from zarr.storage import MemoryStore

    about = attributes()
    made = _Made(form, about["created_at"])
    store = MemoryStore(made.held)
    root = await zarr.open_group(store, mode="w", attributes=about)
    for group, some in itertools.groupby(variables, key=lambda v: v.group):
        parent = await root.create_group(group, attributes=about)
        labelled: set[str] = set()
        for variable in some:
            made.arrays.append(await parent.create_array(variable.name, **variable.options()))
            for dim, values in variable.coords.items():
                if dim not in labelled:
                    options, plain = coordinate(dim, values)
                    if dim == "draw":
                        plain = plain[: variable.shape[1]]
                    index: Any = await parent.create_array(dim, **{**options, "shape": plain.shape})
                    await index.setitem(..., plain)
                    labelled.add(dim)
    with warnings.catch_warnings():
        # Every reader that does not know consolidated metadata reads the array's own.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        await zarr.consolidate_metadata(store)
    return made
