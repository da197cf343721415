"""The types and codecs that a stored array may have: numbers, bools and text, and codecs that execute no code.

A Zarr array names the codecs that decode it. Some codecs, such as pickle of numcodecs, execute code that the stored
bytes contain, so they are refused before an array is read.
"""

import functools
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bdlbench.store.errors import StoreError
from bdlbench.store.files import MOST_RECORD_BYTES, read_regular, refuse_link

CODECS = frozenset({"bytes", "zstd", "crc32c", "sharding_indexed", "blosc", "gzip", "transpose", "vlen-utf8"})
TYPES = frozenset(
    {"bool", "string", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def refuse_codecs(path: Path) -> None:
    """Refuse Zarr arrays that bdlbench cannot have written. This reads the metadata and no array.

    Parameters
    ----------
    path : Path
        An archive, or a folder as older versions wrote it.

    Raises
    ------
    StoreError
        If it holds a symbolic link, a compressed file or two of one name in an archive, an array or group of Zarr
        version 2, a type, a codec or a storage transformer that bdlbench does not write, or metadata that cannot be
        read.
    """
    if path.is_dir():
        _refuse_files(path, _of_folder(path))
        return
    refuse_link(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_files(path, _of_archive(path, archive))
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        _refuse(path, f"cannot be read ({error})")


def _of_folder(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of a folder: the name of each, and a function that reads it."""
    for place, folders, names in os.walk(path):
        for name in (*folders, *names):
            if os.path.islink(os.path.join(place, name)):
                _refuse(path, f"holds '{name}'")
        for name in names:
            yield name, functools.partial(read_regular, os.path.join(place, name))


def _of_archive(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of an archive, likewise. Compressed files are refused, because a small one could fill the memory."""
    seen: set[str] = set()
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.filename in seen:
            _refuse(path, f"holds '{entry.filename}' compressed or twice")
        seen.add(entry.filename)
        if entry.file_size > MOST_RECORD_BYTES:
            _refuse(path, f"holds '{entry.filename}' of {entry.file_size} bytes")
        yield entry.filename.rpartition("/")[2], functools.partial(archive.read, entry)


def _refuse_files(path: Path, files: Iterator[tuple[str, Callable[[], bytes]]]) -> None:
    for name, read in files:
        if name in (".zarray", ".zgroup", ".zattrs", ".zmetadata"):
            _refuse(path, f"holds '{name}'")
        if name != "zarr.json":
            continue
        try:
            fault = next(_faults(json.loads(read())), None)
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
            _refuse(path, f"has metadata that cannot be read ({type(error).__name__})")
        if fault is not None:
            _refuse(path, fault)


def _faults(about: Any) -> Iterator[str]:
    """What is refused in the metadata of an array or group, and in the metadata that a group consolidates."""
    if about.get("zarr_format") != 3:
        yield f"has the format {about.get('zarr_format')}"
    if about.get("node_type") == "array":
        if about["data_type"] not in TYPES:
            yield f"holds an array of type {about['data_type']}"
        for name in _names(about.get("codecs", [])):
            if name not in CODECS:
                yield f"holds an array with the codec {name}"
        if about.get("storage_transformers"):
            yield "holds an array with a storage transformer"
    for each in ((about.get("consolidated_metadata") or {}).get("metadata") or {}).values():
        yield from _faults(each)


def _names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        yield codec["name"] if isinstance(codec, dict) else codec
        settings = codec.get("configuration") or {} if isinstance(codec, dict) else {}
        for key in ("codecs", "index_codecs"):
            yield from _names(settings.get(key, []))


def _refuse(path: Path, fault: str) -> None:
    kind = "folder" if path.is_dir() else "archive"
    raise StoreError(f"The draws '{path}' are not read: the {kind} {fault}, which bdlbench does not write.")
