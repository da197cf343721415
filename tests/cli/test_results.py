"""``bdlbench-results``: each command, its errors, and that it starts without JAX."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bdlbench.cli.results import main
from bdlbench.sampling.position import Position
from bdlbench.store import Store

CONFIG = {"seed": 0, "data": {"split": 0}, "inference": {"step_size": 1e-5}}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A store at the default path with a complete run, another run and a failed run."""
    monkeypatch.chdir(tmp_path)
    store = Store("results/store")
    for id, method, step, status in (
        ("nuts-a1", "nuts", 0.1, "complete"),
        ("sgld-b1", "sgld", 1e-5, "complete"),
        ("sgld-b2", "sgld", 1e-4, "failed"),
    ):
        config = copy.deepcopy(CONFIG)
        config["inference"]["step_size"] = step
        with store.writer(id, config) as writer:
            writer.finish(
                {
                    "status": status,
                    "reason": "out of memory" if status == "failed" else None,
                    "labels": {"data": "diabetes", "inference": method},
                    "metrics": {"lppd": -5.5, "rmse": 55.0} if status == "complete" else {},
                    "seconds": {},
                    "num_grads": {},
                    "device": "cpu",
                    "versions": {},
                    "warnings": [],
                }
            )
    return store.path


def test_list(path, capsys):
    """``list`` shows all runs, those that fit a filter (numbers are compared by value), or those of one status."""
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(id in out for id in ("nuts-a1", "sgld-b1", "sgld-b2"))
    for arguments in (["--filter", "inference.step_size=0.0001"], ["--status", "failed"]):
        assert main(["list", *arguments]) == 0
        out = capsys.readouterr().out
        assert "sgld-b2" in out and "sgld-b1" not in out and "nuts-a1" not in out
    assert main(["list", "--filter", "inference=svi"]) == 0
    assert capsys.readouterr().out == "No runs in results/store fit the filter.\n"


def test_an_empty_store_says_how_to_fill_it(tmp_path, monkeypatch, capsys):
    """An empty store is not an error. The message says how to make a run."""
    monkeypatch.chdir(tmp_path)
    for command in ("list", "table"):
        assert main([command]) == 0
        assert "No finished runs in results/store yet; make one with: bdlbench" in capsys.readouterr().out
    assert main(["delete", "--failed"]) == 0
    assert main(["verify"]) == 0


def test_show_prints_json(path, capsys):
    """``show`` prints the whole record. A unique beginning of the id is enough."""
    assert main(["show", "nuts"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((path / "nuts-a1/run.json").read_text())


def test_table(path, capsys):
    """``table`` shows chosen runs, as Markdown or for the terminal."""
    assert main(["table", "nuts", "sgld-b1", "--markdown"]) == 0
    rows = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["| nuts", "-5.500", "55"], ["| sgld", "-5.500", "55"]]
    assert main(["table", "--aggregate"]) == 0
    assert "1 of 1 failed" in capsys.readouterr().out


def test_diff(path, capsys):
    """``diff`` shows only the differences."""
    assert main(["diff", "sgld-b1", "sgld-b2"]) == 0
    out = capsys.readouterr().out
    assert "inference.step_size" in out and "1e-05" in out and "0.0001" in out and "seed" not in out
    assert main(["diff", "nuts", "nuts"]) == 0
    assert capsys.readouterr().out == "The configurations are equal.\n"


def test_delete_asks_first(path, capsys, monkeypatch):
    """Nothing is deleted without a confirmation, and a complete run is never deleted."""
    for answer in ("", "n"):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert main(["delete", "--failed"]) == 1
    assert "sgld-b2  failed: out of memory" in capsys.readouterr().out
    assert Store(path).has("sgld-b2")
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    assert main(["delete", "--failed"]) == 0
    assert Store(path).runs()["id"].tolist() == ["nuts-a1", "sgld-b1"]


def look(draws, phase="sample"):
    """One line of a curve."""
    return {"phase": phase, "num_draws": draws, "num_grads": 10.0 * draws, "seconds": 0.5, "lppd": -1.25}


@pytest.fixture
def started(path):
    """The writer of a run in progress with three looks, 2 chains and 50 draws in each."""
    config = copy.deepcopy(CONFIG)
    config["inference"]["schedule"] = {"num_chains": 2, "num_samples": 50}
    with Store(path).writer("svi-c1", config) as writer:
        for draws in (1, 2, 5):
            writer.append_curve(look(draws))
        yield writer


def test_a_running_run_is_listed_and_tailed(started, path, capsys):
    """The output has the process that writes the run, its phase, its draws and the last looks."""
    assert main(["list", "--running"]) == 0
    out = capsys.readouterr().out
    assert "svi-c1" in out and f"running (process {os.getpid()} on " in out and "nuts-a1" not in out
    assert "sampling, 5 of 100 draws, 50 gradients, 0.5 s" in out
    assert main(["tail", "svi", "--lines", "2"]) == 0
    state, *looks = capsys.readouterr().out.splitlines()
    assert state.startswith(f"svi-c1: running (process {os.getpid()} on ")
    assert state.endswith("; sampling, 5 of 100 draws, 50 gradients, 0.5 s")
    assert [line.split()[:3] for line in looks] == [["sample", "2", "draws"], ["sample", "5", "draws"]]
    assert looks[1].endswith("lppd -1.25")
    assert main(["list"]) == 0
    assert "1 unfinished (in progress or interrupted): svi-c1" in capsys.readouterr().out


def test_a_run_broken_off_says_so(path, capsys):
    """A run without a process is shown as interrupted. Before its first look, nothing more is known."""
    with Store(path).writer("svi-c1", CONFIG):
        pass
    assert main(["tail", "svi-c1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("svi-c1: interrupted; the same command continues it; not looked at yet")
    assert main(["list", "--unfinished"]) == 0
    assert "interrupted" in capsys.readouterr().out
    assert main(["list", "--running"]) == 0
    assert capsys.readouterr().out == "No running runs in results/store.\n"


STAGES = {
    "before": [{"schedule": {"num_warmup": 500, "num_samples": 1}}],
    "schedule": {"num_warmup": 30_000, "num_samples": 800},
    "num_cycles": 4,
}


@pytest.mark.parametrize(
    ("place", "inference", "said"),
    [
        ((0, 0, "warmup", 1200), {"schedule": {"num_warmup": 30_000}}, "(warm-up step 1,200 of 30,000 at"),
        ((0, 0, "sample", 3), {"step_size": 1e-5}, "(draw 3 at"),
        ((0, 0, "warmup", 20), STAGES, "(stage 1 of 2, warm-up step 20 of 500 at"),
        ((1, 2, "sample", 90), STAGES, "(stage 2 of 2, cycle 3 of 4, draw 90 of 200 at"),
    ],
)
def test_a_long_warm_up_shows_its_checkpoint(place, inference, said, path, capsys):
    """Before the first look, the step is read from the checkpoint without JAX. A damaged checkpoint is ignored."""
    where = Position(*place, (np.zeros((2, 3)),), np.zeros(2, int), None)
    with Store(path).writer("svi-c1", CONFIG | {"inference": inference}) as writer:
        writer.checkpoint({f"position/{name}": array for name, array in where.arrays().items()})
        assert main(["tail", "svi-c1"]) == 0
        assert f"; not looked at yet {said} the last checkpoint)" in capsys.readouterr().out
    assert main(["list", "--unfinished"]) == 0
    assert f"not looked at yet {said} the last checkpoint)" in capsys.readouterr().out
    file = path / "svi-c1/checkpoint/state.npz"
    file.write_bytes(file.read_bytes()[:100])
    assert main(["tail", "svi-c1"]) == 0
    assert "not looked at yet (setting up, compiling or warming up)" in capsys.readouterr().out


def test_a_finished_run_has_a_tail_too(path, capsys):
    """``tail`` of a finished run shows its status and the reason."""
    assert main(["tail", "sgld-b2"]) == 0
    assert capsys.readouterr().out == "sgld-b2: failed: out of memory\n"


def test_following_ends_with_the_run(started, path, capsys, monkeypatch):
    """Each look is printed once. Looks that a resumed run removes and writes again are printed again."""
    from bdlbench.cli import tail

    def more(seconds):
        turn = turns.pop(0)
        if turn == "look":
            started.append_curve(look(10))
        elif turn == "resume":
            lines = (path / "svi-c1/curve.jsonl").read_bytes().splitlines(keepends=True)
            (path / "svi-c1/curve.jsonl").write_bytes(b"".join(lines[:3]))
        else:
            started.append_curve(look(20))
            parts = {name: {} for name in ("metrics", "seconds", "num_grads", "versions", "labels")}
            started.finish({**parts, "status": "complete", "device": "cpu", "warnings": []})

    turns = ["look", "resume", "look", "end"]
    monkeypatch.setattr(tail.time, "sleep", more)
    assert main(["tail", "svi", "--follow", "--lines", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out[1:-1]] == ["5", "10", "10", "20"]
    assert out[-1] == "svi-c1: complete"
    assert turns == []


def test_sql(path, capsys):
    """``sql`` prints the answer to a query, with a dash for a missing value."""
    assert (
        main(
            [
                "sql",
                "select inference, count(*) as n, min(rhat) as r from (select *, null as rhat from runs) group by 1",
            ]
        )
        == 0
    )
    assert "sgld" in (out := capsys.readouterr().out) and "–" in out


def test_verify(path, capsys):
    """For an undamaged store the exit code is 0. A changed file is named and the exit code is 1."""
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "3 runs checked, 0 damaged.\n"
    (path / "nuts-a1/config.yaml").write_text("seed: 1\n")
    assert main(["verify", "nuts"]) == 1
    assert "nuts-a1/config.yaml' does not fit its checksum." in capsys.readouterr().out


def test_data(capsys):
    """``data`` prints one line for each data set, with the values from its yaml."""
    from bdlbench.data import catalogue

    assert main(["data"]) == 0
    out = capsys.readouterr().out
    for entry in catalogue():
        line = next(line for line in out.splitlines() if line.split()[:1] == [entry.name])
        assert entry.licence in line and entry.source in line
        assert entry.note in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "sgld"], "is the beginning of 2 runs; give more of one of sgld-b1, sgld-b2"),
        (["show", "x"], "no finished run in 'results/store' begins with 'x'"),
        (["list", "--filter", "colour=red"], "no run has 'colour'; use a label"),
        (["list", "--filter", "data"], "'data' is not KEY=VALUE"),
        (["sql", "select"], "the query cannot be answered"),
        (["tail", "x"], "no run in 'results/store' begins with 'x'"),
        (["tail", "nuts", "--lines", "0"], "--lines: 0 is no number of looks"),
        (["list", "--running", "--status", "failed"], "are about finished runs"),
        (["diff", "nuts", "../x"], "begins with '../x'"),
    ],
)
def test_errors_are_one_sentence(path, capsys, arguments, message):
    """An error is one sentence on stderr with exit code 2. Nothing is written to stdout."""
    assert main(arguments) == 2
    out, errors = capsys.readouterr()
    assert out == "" and message in errors and errors.count("\n") == 1


def test_an_unreadable_record_is_mentioned(path, capsys):
    """The other runs are listed, and the damaged one is named on stderr."""
    (path / "nuts-a1/run.json").write_text("{")
    assert main(["list"]) == 0
    out, errors = capsys.readouterr()
    assert "sgld-b1" in out and "cannot be read and are left out: nuts-a1" in errors


def test_no_jax_for_reading(path):
    """``list``, ``table`` and ``show`` import neither JAX nor the libraries that need it."""
    script = (
        "import sys; from bdlbench.cli.results import main; main(['list']); main(['table']); main(['show', 'nuts']);"
        "heavy = {'jax', 'numpyro', 'pandas', 'xarray', 'zarr', 'arviz', 'duckdb', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    import bdlbench

    root = bdlbench.__path__[0].rsplit("/", 1)[0]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {script}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compare(path, capsys):
    """``compare`` gives verdicts on the stored runs in three formats. A missing run is reported in one sentence."""
    store = Store(path)
    for split in range(3):
        for method, lppd in (("nuts", -5.0), ("sgld", -5.5 - 0.01 * split)):
            with store.writer(
                f"{method}-c{split}", {"seed": 0, "data": {"split": split, "test_fraction": 0.1}}
            ) as writer:
                writer.finish(
                    {
                        "status": "complete",
                        "labels": {"data": "yacht", "inference": method},
                        "target_id": f"t{split}",
                        "metrics": {"lppd": lppd},
                        "seconds": {},
                        "num_grads": {},
                        "device": "cpu",
                        "versions": {},
                        "warnings": [],
                    }
                )
    options = ["compare", "--metric", "lppd", "--delta", "0.02", "--filter", "data=yacht"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert out.startswith("### same posterior\n")
    assert "| nuts | sgld | yacht | 3 | 0.51 |" in out and "| better |" in out
    assert main([*options, "--format", "csv", "--baseline", "nuts"]) == 0
    assert "same posterior,sgld,nuts,yacht,3,-0.51," in capsys.readouterr().out
    assert main([*options, "--format", "latex"]) == 0
    assert r"\toprule" in capsys.readouterr().out
    for form, shows in (
        ("markdown", "| nuts | **-5"),
        ("latex", r"nuts & $\mathbf{-5}"),
        ("csv", "same posterior,nuts,yacht,lppd,-5.0,0.0,3,3,best,"),
    ):
        assert main(["paper", "--metric", "lppd", "--filter", "data=yacht", "--format", form]) == 0
        assert shows in capsys.readouterr().out
    assert main([*options, "--problems", "judging"]) == 0  # yacht is a problem for tuning
    assert "fit the filter" in capsys.readouterr().out
    assert main([*options, "--problems", "tuning"]) == 0
    assert "| better |" in capsys.readouterr().out
    assert main(["ranks", "--metric", "lppd", "--problems", "tuning", "--figure", "ranks.png"]) == 0
    assert "| nuts | 1.0 | 1 to 1 | 1.00 |" in capsys.readouterr().out
    assert (path.parents[1] / "ranks.png").stat().st_size > 1000
    assert main(["compare", "--metric", "speed", "--delta", "1"]) == 2
    assert "--metric: 'speed' does not say which method is better" in capsys.readouterr().err
