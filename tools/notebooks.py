"""Execute notebooks in place: ``python -m tools.notebooks results/*.ipynb``, from the repository's root.

What is written holds no time stamps, so that the same results make the same file.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BDLBENCH_NOTEBOOK_OVERRIDES"


def overrides() -> list[str]:
    """Hydra overrides that a notebook appends to those of each of its runs: the words of $BDLBENCH_NOTEBOOK_OVERRIDES.

    Empty for the published notebooks; tests shorten the runs by it and keep them in a store of their own.
    """
    return shlex.split(os.environ.get(VARIABLE, ""))


def execute(path: str | Path, *, folder: str | Path | None = None, to: str | Path | None = None) -> Path:
    """Execute a notebook from its first cell in a fresh kernel and write it with its outputs.

    Parameters
    ----------
    path : path-like
    folder : path-like, optional
        Where it runs: what its relative paths are relative to. The current folder where None.
    to : path-like, optional
        Where the result goes; ``path`` itself where None.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails; nothing is written.
    """
    import nbformat
    from nbclient import NotebookClient

    path, to = Path(path), Path(path if to is None else to)
    notebook = nbformat.read(path, as_version=4)
    where = str(Path.cwd() if folder is None else folder)
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False, resources={"metadata": {"path": where}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    # The interpreter's version is no result.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, to)
    return to


def main(paths: Sequence[str]) -> int:
    """Execute the named notebooks; returns the exit code, 1 if a cell failed."""
    from nbclient.exceptions import CellExecutionError

    code = 0
    for path in paths:
        try:
            print(f"{execute(path)}: executed")
        except CellExecutionError as error:
            print(f"Error: {path}: {error.ename}: {error.evalue}\n{error}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
