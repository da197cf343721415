"""Apply each mutant of ``tests/support/mutants.py`` to a copy of the checkout and run the tests that must fail for it.

Run ``make test-mutants``, or ``python tests/mutants/check.py WORD ...`` for the mutants whose kind, file or text contains
one of the words. Each mutant is killed (a test fails), or it survives. A mutant whose text does not occur exactly once, or
whose tests cannot be run, is an error. Before that the named tests must all pass without a mutant; ``--unchecked`` leaves
this out, after a run of the suite. The exit code is 0 if every mutant is killed.
"""

import argparse
import multiprocessing
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from mutants import MUTANTS, Mutant  # noqa: E402
from mutation import replaced  # noqa: E402

TESTS_FAILED = 1
"""The exit code with which pytest says that tests ran and some failed."""
SECONDS = 600
"""The longest time that the tests of one mutant may take. That they took longer does not say that one of them failed."""
LIBRARIES = ["flax.nnx", "hydra", "jax", "numpyro", "optax", "pandas", "pytest", "scipy.stats", "xarray"]
"""What is imported once, in a process from which that of each mutant is forked. Neither this library nor one that computes at its import."""


def copy_checkout(folder: Path) -> Path:
    """Copy the files that git knows or would add, so that neither the checkout nor its compiled files are touched."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_pytest(folder: str, arguments: list[str], output: str) -> None:
    """Run pytest in a copy, in this process, which ends with its exit code. Write what it prints to a file."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder  # for processes that tests start
    sys.path.insert(0, folder)
    import pytest

    code = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(code)


def run_tests(folder: Path, tests: tuple[str, ...], *, mutated: bool) -> tuple[int, str]:
    """Run tests in a copy. Return pytest's exit code, negative if they took too long, and the output."""
    plain = [
        "-q",
        "-n",
        "0",
        "-m",
        "",
        "--timeout",
        "0",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        *(["-x"] if mutated else []),
    ]
    # Without pytest's own limit of time, which would count as a failure of the test.
    plain += ["-W", "ignore:Module already imported"]  # pytest would rewrite the assertions in some of LIBRARIES
    output = folder.with_suffix(".txt")
    process = multiprocessing.Process(target=run_pytest, args=(str(folder), [*plain, *tests], str(output)))
    process.start()
    process.join(SECONDS if mutated else None)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0, output.read_text(encoding="utf-8", errors="replace")


def outcome(folder: Path, mutant: Mutant) -> tuple[str, str]:
    """Return "killed", "survived" or "error", and the test that failed or what a reader needs to know of an error."""
    path = folder / mutant.file
    source = path.read_text(encoding="utf-8")
    try:
        changed = replaced(source, mutant.old, mutant.new, mutant.file)
    except AssertionError as error:
        return "error", str(error)
    try:
        path.write_text(changed, encoding="utf-8")
        # Python takes a compiled file for that of a source with the same date and size.
        os.utime(path, (0, next(_DATES)))
        code, output = run_tests(folder, mutant.tests, mutated=True)
    finally:
        path.write_text(source, encoding="utf-8")
        os.utime(path, (0, next(_DATES)))
    if code == 0:
        return "survived", ""
    if code == TESTS_FAILED:
        return "killed", " ".join(line.split(" ")[1] for line in output.splitlines() if line.startswith("FAILED "))
    return "error", f"the tests ended with exit code {code}: {output[-1500:]}"


_DATES = iter(range(1, 10**6))


def chosen(words: list[str]) -> list[tuple[str, Mutant]]:
    """Return the mutants that contain one of the words, with their kinds; all mutants if there is no word."""
    every = [(kind, mutant) for kind, mutants in MUTANTS.items() for mutant in mutants]
    return [(k, m) for k, m in every if not words or any(w in " ".join((k, m.file, m.old, m.new)) for w in words)]


def main() -> int:
    """Check the mutants that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="check only the mutants that contain one of these words")
    parser.add_argument(
        "-u", "--unchecked", action="store_true", help="take for granted that the tests pass as they are"
    )
    parser.add_argument("-j", "--jobs", type=int, default=2, help="mutants that are checked at the same time (2)")
    arguments = parser.parse_args()
    mutants = chosen(arguments.words)
    if not mutants:
        print(f"no mutant contains {' or '.join(arguments.words)}")
        return 1
    began = time.monotonic()
    # The programs that a mutant does not change are compiled once, and so are the modules.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".pytest_cache" / "modules"))
    # JAX warns of threads, which it starts with its first computation. Nothing is computed before the forks.
    os.environ["PYTHONWARNINGS"] = "ignore:os.fork:RuntimeWarning"
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for job in range(arguments.jobs):
            copies.put(copy_checkout(Path(folder) / str(job)))
        tests = tuple(dict.fromkeys(test for _, mutant in mutants for test in mutant.tests))
        if not arguments.unchecked:
            code, output = run_tests(Path(folder) / "0", tests, mutated=False)
            if code != 0:
                print(f"tests fail without a mutant, so that they kill nothing:\n{output[-5000:]}")
                return 1
            print(f"{len(tests)} tests pass without a mutant ({time.monotonic() - began:.0f} s)", flush=True)

        def check(kind: str, mutant: Mutant) -> str:
            copy, since = copies.get(), time.monotonic()
            try:
                found, why = outcome(copy, mutant)
            finally:
                copies.put(copy)
            place = f"{mutant.file}: {' '.join(mutant.old.split())} -> {' '.join(mutant.new.split())}"
            print(f"{found:9}{time.monotonic() - since:4.0f} s  {kind}: {place}{why and ': '}{why}", flush=True)
            return found

        found = list(pool.map(lambda one: check(*one), mutants))
    counts = ", ".join(f"{found.count(word)} {word}" for word in ("killed", "survived", "error"))
    print(f"{len(found)} mutants: {counts} in {time.monotonic() - began:.0f} s")
    return int(found.count("killed") != len(found))


if __name__ == "__main__":
    sys.exit(main())
