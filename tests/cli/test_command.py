"""The command line around Hydra: what it adds to the arguments, and streams that fail."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bdlbench import __version__
from bdlbench.cli import command
from bdlbench.cli.main import main
from bdlbench.cli.streams import Lenient

ROOT = Path(__file__).parents[2]
TINY = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=8", "network.width=3", "metrics=[lppd]", "inference=map"]
TINY += ["inference.schedule.num_warmup=3", "inference.schedule.num_chains=2", "progress=off"]


def test_the_version_is_ours(capsys):
    """``--version`` prints the version of bdlbench, although Hydra has an option of the same name."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bdlbench {__version__}\n"


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("store.path=~/x", "store.path=/users/me/x"),
        ("++store.path=~", "++store.path=/users/me"),
        ("~store", "~store"),
        ("store.path=x~y", "store.path=x~y"),
        ("store.path='~/x'", "store.path='~/x'"),
    ],
)
def test_the_home_is_put_in(given, made, monkeypatch):
    """``~`` is replaced by the user's home where a shell does not replace it and Hydra cannot read it."""
    monkeypatch.setenv("HOME", "/users/me")
    assert command.at_home(given) == made
    monkeypatch.setenv("HOME", "/users/you and me")
    assert command.at_home("store.path=~/x") == "store.path='/users/you and me/x'"


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("inference=nuts,hmc inference.step_size=1", "inference=nuts,hmc inference.step_size=choice(1)"),
        ("inference=nuts,hmc inference.a=[1,2] seed=3", "inference=nuts,hmc inference.a=choice([1,2]) seed=3"),
        ("inference=nuts,hmc inference.step_size=1,2", "inference=nuts,hmc inference.step_size=1,2"),
        ("inference=nuts,hmc inference.step_size=range(3)", "inference=nuts,hmc inference.step_size=range(3)"),
        ("inference=nuts inference.step_size=1", "inference=nuts inference.step_size=1"),
        ("inference=nuts,hmc ~inference.step_size", "inference=nuts,hmc ~inference.step_size"),
    ],
)
def test_a_value_inside_a_swept_group_is_swept_too(given, made):
    """A value inside a swept group becomes part of the sweep, so that Hydra sets it in each job with its method."""
    assert command.each_alone(["-m", *given.split()]) == ["-m", *made.split()]
    assert command.each_alone(given.split()) == given.split()


def test_two_methods_take_one_value_of_an_option_that_both_have(store_path, monkeypatch, capsys):
    """Both jobs are composed, and refused only for the value. The default NUTS has no step_size."""
    monkeypatch.setattr(sys, "argv", ["bdlbench"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert command.execute(["-m", "inference=sgld,psgld", "inference.step_size=-1", f"store.path={store_path}"]) == 1
    said = capsys.readouterr().err
    assert said.count("Error: inference.step_size=-1.0 must be a positive finite number.") == 2
    assert "no option here" not in said and not store_path.exists()


class Broken(io.StringIO):
    """A stream whose device is full."""

    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_stream_that_fails_is_said_once():
    """One line reports that the stream has failed. Further output is lost, and no exception is raised."""
    told = io.StringIO()
    stream = Lenient(Broken(), told)
    for _ in range(3):
        print("a table", file=stream, flush=True)
    assert told.getvalue().count("standard output cannot be written to") == 1
    stream.close()  # the null device that stands in for it


BAD = {
    "full": ">/dev/full",
    "closed": ">&-",
    "both closed": ">&- 2>&-",
    "errors full": "2>/dev/full",
    "head": "| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in [*BAD][1:])])
def test_the_exit_code_is_the_runs_whatever_becomes_of_its_output(how, store_path):
    """On a terminal that accepts only ASCII, the exit code is still that of the run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    line = f'"$@" {BAD[how]}'
    run = ["bash", "-c", line, "bash", sys.executable, "-m", "bdlbench.cli.main", *TINY, f"store.path={store_path}"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert ("standard output cannot be written to" in done.stderr) == (how == "full")
    assert len(list(store_path.glob("*/run.json"))) == 1


REFUSED = {
    "a number": (["inference.schedule.num_samples=foo"], "inference.schedule.num_samples"),
    "a name": (["inference=nuts_"], "nuts"),
    "a key": (["+likelihod=gaussian"], "likelihood"),
    "a list without -m": (["seed=0,1"], "seed"),
    "a path": (["store.path=''"], "store.path"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", [*[*REFUSED][:1], *(pytest.param(name, marks=pytest.mark.slow) for name in [*REFUSED][1:])]
)
def test_a_real_command_refuses_what_is_bad(what, tmp_path):
    """A bad value gives one sentence on standard error and exit code 1.

    There is no traceback, and nothing is written.
    """
    given, named = REFUSED[what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HYDRA_FULL_ERROR", None)
    run = [sys.executable, "-m", "bdlbench.cli.main", "data=diabetes", "progress=off", *given]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert named in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
