"""The archive of a stored run's draws, read and changed by tests."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from bdlbench.store.layout import write_archive

NAME = "posterior.zarr.zip"


def entries(run: Path) -> dict[str, bytes]:
    """The files of the draws of the run in this folder, by name."""
    with zipfile.ZipFile(run / NAME) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def chunks(run: Path) -> dict[str, bytes]:
    """Those that hold values: the metadata hold the time."""
    return {name: data for name, data in entries(run).items() if not name.endswith("zarr.json")}


def rewrite(run: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Write the archive again after ``change`` has changed its files in place."""
    files = entries(run)
    change(files)
    write_archive(run / NAME, files.items())


def unpacked(run: Path) -> Path:
    """Turn the archive into the folder ``posterior.zarr``, as stores of version 1 have it, and return the folder."""
    folder = run / "posterior.zarr"
    with zipfile.ZipFile(run / NAME) as archive:
        archive.extractall(folder)
    (run / NAME).unlink()
    return folder
