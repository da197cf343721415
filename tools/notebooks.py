"""Execute notebooks in place: ``python -m tools.notebooks results/*.ipynb``, from the repository's root.

The written notebook has no time stamps, so that the same results give the same file.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BDLBENCH_NOTEBOOK_OVERRIDES"


def overrides() -> list[str]:
    """Hydra overrides that a notebook adds to those of each of its runs, from $BDLBENCH_NOTEBOOK_OVERRIDES.

    There are none for the published notebooks. Tests use them to shorten the runs and to keep them in another store.
    """
    return shlex.split(os.environ.get(VARIABLE, ""))


def execute(path: str | Path, *, folder: str | Path | None = None, to: str | Path | None = None) -> Path:
    """Execute a notebook from its first cell in a fresh kernel and write it with its outputs.

    Parameters
    ----------
    path : path-like
    folder : path-like, optional
        The folder in which it runs and at which its relative paths start. None is the current folder.
    to : path-like, optional
        The file to write. None is ``path`` itself.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails. Nothing is written then.
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
    # The version of the interpreter is not a result, so it is left out.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, to)
    return to


def main(paths: Sequence[str]) -> int:
    """Execute the named notebooks and return the exit code, which is 1 if a cell failed."""
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
