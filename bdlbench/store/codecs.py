"""The types and codecs that a stored array may have: numbers, bools and text, and codecs that execute no code.

A Zarr array names the codecs that decode it. Some codecs, such as pickle of numcodecs, execute code that the stored
bytes contain, so they are refused before an array is read.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bdlbench.store.errors import StoreError
from bdlbench.store.files import read_regular

CODECS = frozenset({"bytes", "zstd", "crc32c", "sharding_indexed", "blosc", "gzip", "transpose", "vlen-utf8"})
TYPES = frozenset(
    {"bool", "string", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def refuse_codecs(path: Path) -> None:
    """Refuse a Zarr folder that bdlbench cannot have written. This reads the metadata and no array.

    Raises
    ------
    StoreError
        If the folder holds a symbolic link, an array or group of Zarr version 2, a type, a codec or a storage
        transformer that bdlbench does not write, or metadata that cannot be read.
    """
    for place, folders, names in os.walk(path):
        linked = [name for name in (*folders, *names) if os.path.islink(os.path.join(place, name))]
        old = [name for name in names if name in (".zarray", ".zgroup", ".zattrs", ".zmetadata")]
        if linked or old:
            _refuse(path, f"holds '{(linked or old)[0]}'")
        if "zarr.json" in names:
            try:
                about = json.loads(read_regular(os.path.join(place, "zarr.json")))
                fault = next(_faults(about), None)
            except (ValueError, RecursionError, AttributeError, TypeError) as error:
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
    raise StoreError(f"The draws '{path}' are not read: the folder {fault}, which bdlbench does not write.")
