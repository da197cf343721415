"""Chunks and options of a posterior's variables in Zarr, and the archive in which a finished run keeps its draws."""

import asyncio
import itertools
import math
import os
import threading
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from bdlbench.store.files import replace_file

CHUNK_BYTES = 16 * 2**20
"""Largest size of a chunk before compression. A wide last axis is split so that no chunk is larger."""


@dataclass
class Variable:
    """One variable: how it was declared, the blocks that wait to be written, and its Zarr array once this is made.

    With a packing (scale, offset) the stored numbers v stand for v * scale + offset, computed in float64.
    """

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    dims: tuple[str, ...]
    chunks: tuple[int, ...]
    coords: dict[str, np.ndarray]
    packing: tuple[float, float] | None = None
    array: Any = None
    waiting: list[np.ndarray] = field(default_factory=list)

    @property
    def has_draws(self) -> bool:
        """Whether the variable has a draw axis and is written in blocks; otherwise it is written whole."""
        return "draw" in self.dims

    def waiting_values(self) -> np.ndarray:
        """The blocks that wait to be written, joined along the draw axis."""
        return np.concatenate(self.waiting, 1) if self.has_draws else self.waiting[0]

    def options(self) -> dict[str, Any]:
        """Keyword arguments of Zarr's ``create_array``."""
        from zarr.codecs import BloscCodec, Crc32cCodec

        packing = {} if self.packing is None else dict(zip(("scale_factor", "add_offset"), self.packing, strict=True))
        return {
            "shape": self.shape,
            "dtype": self.dtype,
            "chunks": self.chunks,
            "dimension_names": self.dims,
            "fill_value": math.nan if self.dtype.kind == "f" else None,
            # The names of the CF conventions, which xarray applies when it reads.
            "attributes": packing,
            # Draws are noise except in their signs and exponents, which the shuffle puts side by side; a higher level
            # costs ten times the time for a few per cent. The checksum finds a chunk that changed.
            "compressors": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()],
            # Zarr reads a missing chunk as fill values. If every chunk is written, a missing one is known to be lost.
            "config": {"write_empty_chunks": True},
        }


def coordinate(dim: str, values: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Keyword arguments of ``create_array`` for the labels of a dim, and the labels in the type that Zarr accepts."""
    text = values.dtype.kind in "UOT"
    options: dict[str, Any] = {"shape": values.shape, "dtype": "str" if text else values.dtype}
    options |= {"chunks": (max(1, values.size),), "dimension_names": (dim,), "config": {"write_empty_chunks": True}}
    return options, values.astype(object) if text else values


def attributes() -> dict[str, Any]:
    """Attributes of the root and of each group."""
    return {"creation_library": "bdlbench", "created_at": datetime.now(UTC).isoformat(timespec="seconds")}


def chunks(shape: tuple[int, ...], dtype: np.dtype, has_draws: bool, chunk_draws: int | None) -> tuple[int, ...]:
    """Shape of a chunk: all chains, and ``chunk_draws`` draws or as many as fit into ``CHUNK_BYTES`` if it is None.

    The axes after the draws are split where a chunk would exceed ``CHUNK_BYTES``.
    """
    out = [max(1, size) for size in shape]
    rest = 0
    if has_draws:
        rest = 2
        if chunk_draws is None:
            chunk_draws = CHUNK_BYTES // (math.prod(out) // out[1] * dtype.itemsize)
        out[1] = max(1, min(chunk_draws, out[1]))
    for axis in reversed(range(rest, len(out))):  # the last axis is split first, because diagnostics read it by columns
        size = math.prod(out) * dtype.itemsize
        if size > CHUNK_BYTES:
            out[axis] = max(1, out[axis] // math.ceil(size / CHUNK_BYTES))
    return tuple(out)


def kept_draws(group: str, written: dict[str, int]) -> tuple[int, list[str]]:
    """The number of draws that every variable of a group has, and a note if some variables have more.

    ``written`` maps the name of a variable to its number of draws. All variables of a group must have the same number
    in xarray. If a run stopped between the writing of two variables, the longer one is therefore cut.
    """
    kept = min(written.values(), default=0)
    cut = [name for name in sorted(written) if written[name] > kept]
    return kept, [f"{group}: {', '.join(cut)} cut to the {kept} draws that the others have."] if cut else []


def write_whole(path: Path, variables: Sequence[Variable]) -> list[str]:
    """Write a posterior whose draws all wait in memory as one archive, and return a note for each group that was cut.

    To make an array, Zarr passes several times through its event loop. Each pass takes milliseconds if it begins and
    ends in another thread. Here all passes are one task that writes to a store in memory. The files of this store are
    then written to the archive ``path``. The arrays in memory are kept: if the next posterior has the same form, as in
    a sweep, its values are written into them.
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
        with ThreadPoolExecutor(1) as pool:  # the caller's thread may run an event loop already, as in a notebook
            made = _last = pool.submit(asyncio.run, _write(made, form, whole)).result()
        files = {key: buffer.to_bytes() for key, buffer in made.held.items()}
    stamps = (made.created_at.encode(), attributes()["created_at"].encode())
    stamped = ((key, data.replace(*stamps) if key.endswith("zarr.json") else data) for key, data in files.items())
    write_archive(path, stamped)
    return notes


def write_archive(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, by name, into one ZIP archive, which is complete or absent after a crash at any instant.

    A run of ten variables has a hundred files and folders in Zarr, and a sweep of thousands of runs would use up the
    inodes of a file system. The archive does not compress: the chunks are compressed, and a reader finds each in place.
    """

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files:
                archive.writestr(zipfile.ZipInfo(name), data)  # without the time, so that equal draws are equal bytes

    replace_file(path, fill)


def files_below(folder: Path) -> Iterable[tuple[str, bytes]]:
    """The files below a folder by their relative names, sorted; one is read at a time."""
    names = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    for name in sorted(names):
        yield os.path.relpath(name, folder), Path(name).read_bytes()


def _cut(variable: Variable, kept: int) -> Variable:
    values = variable.waiting_values()
    if not variable.has_draws:
        return Variable(**{**vars(variable), "waiting": [values]})
    shape = (variable.shape[0], kept, *variable.shape[2:])
    return Variable(**{**vars(variable), "shape": shape, "waiting": [values[:, :kept]]})


@dataclass
class _Made:
    """The files of a posterior in memory, by name, and its Zarr arrays, through which new values are written."""

    form: tuple[Any, ...]
    created_at: str
    held: dict[str, Any] = field(default_factory=dict)
    arrays: list[Any] = field(default_factory=list)


_last: _Made | None = None
"""The files of the posterior written last. Its draws are at most ``BUFFER_BYTES`` (4 MiB)."""
_lock = threading.Lock()


def _form(variable: Variable) -> tuple[Any, ...]:
    """All that the files of a variable depend on except its values: names, shape, type, chunks and labels."""
    labels = tuple((dim, values.dtype.str, tuple(values.tolist())) for dim, values in variable.coords.items())
    v = variable
    return v.group, v.name, v.shape, v.dtype.str, v.dims, v.chunks, v.packing, labels


async def _write(made: _Made | None, form: tuple[Any, ...], variables: Sequence[Variable]) -> _Made:
    """Write the values of ``variables`` into the arrays of ``made``, or into new arrays if ``made`` is None."""
    if made is None:
        made = await _make(form, variables)
    for array, variable in zip(made.arrays, variables, strict=True):
        await array.setitem(..., variable.waiting[0])
    return made


async def _make(form: tuple[Any, ...], variables: Sequence[Variable]) -> _Made:
    """Make the groups, the arrays without their values, the labels and the consolidated metadata."""
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
        # A reader that does not know consolidated metadata reads the metadata of each array instead.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        await zarr.consolidate_metadata(store)
    return made
