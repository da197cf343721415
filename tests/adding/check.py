"""Add the examples of CONTRIBUTING.md to a clean clone of this checkout, and run the whole test suite there.

    python tests/adding/check.py [argument of pytest ...]

The clone has what is committed. The files under ``examples`` are put at their own paths, and the line that the test of
checksums announces for the new data set is added where it says. Nothing else is edited. The arguments replace those of
the whole suite: ``make test-adding SELECT="-n 0 tests/inference -k constant_sgd"``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(__file__).parent / "examples"
SUITE = ["-n", "2", "--dist", "worksteal", "tests"]
CHECKSUMS = "tests/data/test_checksums.py::test_every_set_has_a_checksum"


def pytest(clone: Path, *arguments: str, output: bool = False) -> subprocess.CompletedProcess[str]:
    """Run tests of the clone: its own package comes before the one that is installed."""
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=output, text=True, check=False)


def add_checksum(clone: Path) -> None:
    """Add the announced line, as a contributor does who has looked at the rows."""
    said = pytest(clone, "-n", "0", CHECKSUMS, output=True)
    lines = sorted(set(re.findall(r'"(\w+)": (\{"train": .*?\})', said.stdout)))
    if said.returncode == 0 or not lines:
        raise SystemExit(f"{CHECKSUMS} announces no line for the new data set:\n{said.stdout}{said.stderr}")
    file = clone / "tests/data/checksums.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    known |= {name: json.loads(facts) for name, facts in lines}
    file.write_text(json.dumps(known), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """The exit code of the suite in the clone."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "bdlbench"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shutil.copytree(EXAMPLES, clone, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        add_checksum(clone)
        return pytest(clone, *(arguments or SUITE)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
