"""The draws of a run are a DataTree of the ArviZ schema in Zarr 3, which is written one block of draws after another.

Arrays are allocated for the planned number of draws. When the run ends they are cut to the number of draws written, so
a draw that was never made is not read as a fill value, and all files are put into one archive. A Zarr write takes one
or two milliseconds, however small it is, and a run makes about a hundred of them. Blocks are therefore gathered in
memory until they exceed ``BUFFER_BYTES``. This needs at most ``BUFFER_BYTES`` and the size of one block.
"""

import itertools
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.store import layout
from bdlbench.store.layout import Variable

GROUPS = (
    "posterior", "sample_stats", "posterior_predictive", "log_likelihood", "observed_data", "constant_data",
    "predictions", "log_likelihood_test", "predictions_constant_data",
)  # fmt: skip
"""Groups of the ArviZ schema, and ``log_likelihood_test``. The rows of ``observed_data`` are training rows; those of
``predictions`` and ``log_likelihood_test`` are test rows."""
EARLIER = {
    "posterior_predictive": "predictions", "log_likelihood": "log_likelihood_test",
    "observed_data": "predictions_constant_data",
}  # fmt: skip
"""The groups of test rows by their names in schema 1 and in schema 2."""
BUFFER_BYTES = 4 * 2**20
"""Largest size of a run's draws that wait in memory. It is small because a sweep writes many runs at the same time."""


class PosteriorArrays:
    """The folder ``posterior.zarr`` while its run is being written, and the archive that is made from it at the end.

    Parameters
    ----------
    path : Path
        The folder. It is made when the first array is written, or it is there already when a run is resumed.
    """

    ARCHIVE = "posterior.zarr.zip"
    """Name of the archive, beside the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: dict[str, int] = {}
        """Number of draws of each ``group/name`` received so far. An array without a draw axis has 0 or, once written, 1."""
        self._variables: dict[str, Variable] = {}
        self._groups: dict[str, Any] = {}
        self._labelled: set[tuple[str, str]] = set()
        self._waiting_bytes = 0

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
        """Declare one variable; see :meth:`bdlbench.store.RunWriter.allocate`."""
        shape, dims, dtype = tuple(int(size) for size in shape), tuple(dims), np.dtype(dtype)
        self._check(group, name, shape, dtype, dims, coords or {})
        key = f"{group}/{name}"
        if key in self._variables:
            raise ValueError(f"{key} was allocated already.")
        index = {dim: np.arange(size) for dim, size in zip(dims, shape, strict=True) if dim in ("chain", "draw")}
        labels = {dim: np.asarray(values) for dim, values in {**index, **(coords or {})}.items()}
        for other in self._variables.values():
            for dim in labels.keys() & other.coords.keys() if other.group == group else ():
                if labels[dim].tolist() != other.coords[dim].tolist():
                    raise ValueError(f"The coordinate {dim} differs between two variables of {group}.")
        chunks = layout.chunks(shape, dtype, "draw" in dims, chunk_draws)
        variable = Variable(group, name, shape, dtype, dims, chunks, labels, packing)
        if (self.path / group / name).exists():  # left by an earlier attempt
            self._open(variable)
        self._variables[key] = variable
        self.written.setdefault(key, 0)

    def write(self, group: str, name: str, start_draw: int, array: Any) -> None:
        """Take the draws from ``start_draw`` on; see :meth:`bdlbench.store.RunWriter.write`."""
        key = f"{group}/{name}"
        target = self._allocated(key)
        block = np.array(array)  # a copy, because a block is a view of the draws of many runs
        if block.dtype != target.dtype:
            raise TypeError(f"{key} holds {target.dtype}, not {block.dtype}.")
        stop = 1
        if not target.has_draws:
            if start_draw != 0 or block.shape != target.shape:
                raise ValueError(f"{key} has no draws: write it whole, {target.shape}, at 0.")
        else:
            stop = start_draw + (block.shape[1] if block.ndim > 1 else 0)
            if block.shape[:1] + block.shape[2:] != target.shape[:1] + target.shape[2:]:
                raise ValueError(f"A block of {key} has shape {block.shape}; the array has {target.shape}.")
            if not 0 <= start_draw <= self.written[key] or stop > target.shape[1]:
                raise ValueError(
                    f"Draws {start_draw} to {stop} of {key} do not follow the {self.written[key]} written"
                    f" of {target.shape[1]}."
                )
        again = start_draw < self.written[key] or (not target.has_draws and self.written[key] > 0)
        if again:
            self.flush()
            self._put(target, start_draw, block)
            self.written[key] = max(self.written[key], stop)
            return
        target.waiting.append(block)
        self._waiting_bytes += block.nbytes
        self.written[key] = stop
        if self._waiting_bytes > BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the blocks that wait in memory, so that the folder holds every draw received."""
        for key, variable in self._variables.items():
            if variable.waiting:
                block = variable.waiting_values()
                self._put(variable, self.written[key] - block.shape[1] if variable.has_draws else 0, block)
                self._waiting_bytes -= block.nbytes
                variable.waiting.clear()

    def read_columns(self, group: str, name: str, start: int, stop: int) -> np.ndarray:
        """Columns of the last axis of the written draws; see :meth:`bdlbench.store.RunWriter.read_columns`."""
        key = f"{group}/{name}"
        variable = self._allocated(key)
        if not variable.has_draws:
            raise ValueError(f"{key} has dims {variable.dims}; columns are cut from (chain, draw, ...).")
        stored = self.written[key] - sum(block.shape[1] for block in variable.waiting)
        parts: list[np.ndarray] = []
        flat = len(variable.shape) == 2  # a scalar site has one column, which is the array itself
        if stored:
            parts.append(variable.array[:, :stored] if flat else variable.array[:, :stored, ..., start:stop])
        parts += [block if flat else block[..., start:stop] for block in variable.waiting]
        if not parts:
            parts = [np.zeros((variable.shape[0], 0, *variable.shape[2:]), variable.dtype)[..., start:stop]]
        columns = np.concatenate(parts, 1)
        if variable.packing is not None:
            columns = columns.astype(np.float64) * variable.packing[0] + variable.packing[1]
        return columns[..., None][..., start:stop] if flat else columns

    def check(self, written: Mapping[str, int]) -> None:
        """Read the first ``written`` draws of each array, chunk by chunk.

        Raises
        ------
        OSError, ValueError, KeyError, RuntimeError
            If a chunk is missing or its bytes do not agree with its checksum.
        """
        import zarr

        root: Any = zarr.open_group(self.path, mode="r", use_consolidated=False) if any(written.values()) else {}
        for key, drawn in written.items():
            if not drawn:
                continue
            array = root[key]
            shape = (array.shape[0], drawn, *array.shape[2:]) if _has_draws(array) else array.shape
            if any(size < wanted for size, wanted in zip(array.shape, shape, strict=True)):
                raise ValueError(f"{key} has {array.shape}, and {drawn} draws were written")
            counts = [-(-size // chunk) for size, chunk in zip(shape, array.chunks, strict=True)]
            for index in itertools.product(*(range(count) for count in counts)):
                if not (self.path / key / "c" / "/".join(map(str, index))).exists():
                    raise ValueError(f"{key} lost chunk {'/'.join(map(str, index))}")
                at = (slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, array.chunks, shape, strict=True))
                array[tuple(at)]

    def close(self) -> list[str]:
        """Cut each group to the draws written, delete arrays that were never written, and write the archive.

        The folder is kept, because a checkpoint may need it until the record is in place.

        Returns
        -------
        list of str
            A sentence for each variable that was not stored and for each group that was cut.
        """
        import zarr

        notes: list[str] = []
        for key, variable in self._variables.items():
            if variable.array is None and not self.written[key]:
                notes.append(f"{key} was not stored: nothing was written to it.")
        archive = self.path.with_name(self.ARCHIVE)
        archive.unlink(missing_ok=True)  # left by an attempt that was killed before its record was in place
        if not self.path.exists():
            some = [variable for variable in self._variables.values() if variable.waiting]
            return notes + (layout.write_whole(archive, some) if some else [])
        self.flush()
        root: Any = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        for group, parent in sorted(root.groups()):
            arrays = {
                name: array for name, array in sorted(parent.arrays()) if array.metadata.dimension_names != (name,)
            }
            written = {name: self.written.get(f"{group}/{name}", 0) for name in arrays}
            for name in [name for name in arrays if not written[name]]:
                notes.append(f"{group}/{name} was not stored: nothing was written to it.")
                shutil.rmtree(self.path / group / name)
                del arrays[name]
            drawn = [name for name in arrays if _has_draws(arrays[name])]
            kept, cut = layout.kept_draws(group, {name: written[name] for name in drawn})
            notes += cut
            for name in drawn:
                _cut(arrays[name], (arrays[name].shape[0], kept, *arrays[name].shape[2:]))
            if drawn:
                _cut(parent["draw"], (kept,))
            elif not arrays:
                shutil.rmtree(self.path / group)
        if not any(root.group_keys()):
            shutil.rmtree(self.path)
            return notes
        with warnings.catch_warnings():
            # A reader that does not know consolidated metadata reads the metadata of each array instead.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            zarr.consolidate_metadata(str(self.path))
        layout.write_archive(archive, layout.files_below(self.path))
        return notes

    def _allocated(self, key: str) -> Variable:
        if key not in self._variables:
            raise ValueError(f"{key} was not allocated.")
        return self._variables[key]

    def _put(self, variable: Variable, start: int, block: np.ndarray) -> None:
        """Write a block into the array in the folder. The array is made first if it is not there."""
        if variable.array is None:
            self._open(variable)
        if variable.has_draws:
            variable.array[:, start : start + block.shape[1]] = block
        else:
            variable.array[...] = block

    def _open(self, variable: Variable) -> None:
        """Make the variable's array in the folder, or open the one that an earlier attempt left there."""
        parent, shape, dtype = self._group(variable.group), variable.shape, variable.dtype
        if variable.name in parent:
            array = parent[variable.name]
            kept = (*array.shape[:1], *shape[1:2], *array.shape[2:]) if variable.has_draws else array.shape
            if kept != shape or array.dtype != dtype:
                key = f"{variable.group}/{variable.name}"
                raise ValueError(f"{key} is stored as {array.shape} {array.dtype}, not as {shape} {dtype}.")
            _cut(array, shape)  # the array of a run that ended early had been cut
        else:
            array = parent.create_array(variable.name, **variable.options())
        variable.array = array
        for dim, values in variable.coords.items():
            if (variable.group, dim) not in self._labelled:
                self._write_coordinate(parent, dim, values)
                self._labelled.add((variable.group, dim))

    def _group(self, group: str) -> Any:
        import zarr

        if group not in self._groups:
            # An attempt that was killed while it finished may have left consolidated metadata that are out of date.
            root = zarr.open_group(self.path, mode="a", attributes=layout.attributes(), use_consolidated=False)
            there = group in root
            self._groups[group] = root[group] if there else root.create_group(group, attributes=layout.attributes())
        return self._groups[group]

    def _check(
        self, group: str, name: str, shape: tuple[int, ...], dtype: np.dtype, dims: tuple[str, ...], coords: Mapping
    ) -> None:
        key = f"{group}/{name}"
        if group not in GROUPS:
            raise ValueError(f"Group '{group}' is none of {', '.join(GROUPS)}.")
        if "/" in name or not name:
            raise ConfigError(f"model: the site name '{name}' cannot be stored; rename it without '/'.")
        if dtype.kind not in "fiub":
            raise TypeError(f"{key} cannot hold {dtype}: floats, integers and bools are stored.")
        if len(dims) != len(shape) or len(set(dims)) != len(dims) or name in dims:
            raise ValueError(f"{key} of shape {shape} cannot have the dims {dims}.")
        if {"chain", "draw"} & set(dims) and dims[:2] != ("chain", "draw"):
            raise ValueError(f"{key} has dims {dims}; draws come as (chain, draw, ...).")
        sizes = dict(zip(dims, shape, strict=True))
        for other, variable in self._variables.items():
            if variable.group == group and other != key:
                for dim, size in zip(variable.dims, variable.shape, strict=True):
                    if sizes.get(dim, size) != size:
                        raise ValueError(f"Dim {dim} has {size} entries in {other}, but {sizes[dim]} in {key}.")
        for dim, values in coords.items():
            if dim not in sizes or np.shape(values) != (sizes[dim],):
                raise ValueError(f"The coordinate {dim} of {key} has shape {np.shape(values)}; the dims are {sizes}.")

    @staticmethod
    def _write_coordinate(parent: Any, dim: str, values: np.ndarray) -> None:
        options, plain = layout.coordinate(dim, values)
        if dim in parent:  # left by an earlier attempt, which may have cut it or not have written its values
            array = parent[dim]
            _cut(array, values.shape)
        else:
            array = parent.create_array(dim, **options)
        array[:] = plain


def _cut(array: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        array.resize(shape)


def _has_draws(array: Any) -> bool:
    return "draw" in array.metadata.dimension_names
