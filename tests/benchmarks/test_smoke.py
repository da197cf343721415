"""The benchmarks walk through; nothing about their figures is asserted but what holds on any machine."""

import json

import pytest

from bdlbench.types import Method, Schedule
from benchmarks import problems, rows_methods, timing
from benchmarks.__main__ import ROWS, main, show

CASES = rows_methods.FULL | rows_methods.BATCHES


def test_measures_take_turns_and_the_first_round_is_thrown_away():
    order = []
    found = timing.in_turns({"a": lambda: order.append("a") or 2.0, "b": lambda: order.append("b") or 1.0}, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert timing.ratios(found["a"], found["b"]) == [2.0, 2.0]


def test_a_long_reason_leaves_the_names_readable(capsys):
    """Into a file too, which has no width of its own."""
    row = timing.Row("a step of a method", "ms", [1.0])
    show({"sgld": [row], "nuts": "failed: ValueError: " + "no such thing " * 50, "lanes": "no accelerator"})
    lines = capsys.readouterr().out.splitlines()
    for name, state in (("a step of a method", "1 ms"), ("nuts", "failed"), ("lanes", "skipped")):
        assert any(name in line and state in line for line in lines), lines


LIMITS = {
    "nuts": 1, "nuts_chains": 1, "recompile": 1, "sgld": 1, "svi": 1, "linear_regression": 1, "new_process": 1,
    "memory": 0, "checkpoints": 1, "found": 1, "lanes": 0, "deep_ensemble": 2, "sweep_nuts": 1, "sweep_sgld": 2,
    "sweep_growth": 0, "sweep_overhead": 1, "sweep_repeat": 1, "store_table": 1, "worth": 1,
    "looks": 2, "verdicts": 1, "references": 1,
    **{name: int(case.limit is not None) for name, case in CASES.items()},
}  # fmt: skip
"""How many rows of each name have a limit; of ``mile`` it depends on whether the other package is here."""
FAST = {"sgld", "hmc", "svgd", "sghmc", "linear_regression", "found", "worth"}
"""What takes a few seconds; ``make test-long`` walks through the rest."""


def speed(name):
    """The mark of a row."""
    if name in FAST:
        return name
    return pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_the_settings_of_its_method(name):
    """Factories have no defaults, and a setting that came later would leave its row failed."""
    case, problem = CASES[name], problems.many_rows(200, 9, 3)
    target = problem.target(problem.x, problem.y)
    schedule = Schedule(1, max(case.num_warmup, 1), 1, case.thinning, 100 if name in rows_methods.BATCHES else None)
    assert isinstance(case.factory(target, schedule, **case.options), Method)


@pytest.mark.slow
@pytest.mark.parametrize("name", [speed(name) for name in ROWS])
def test_rows_are_measured_and_kept(name, tmp_path, capsys):
    """Every row of the table, on tiny problems."""
    assert main(["--only", name, "--repeat", "1", "--quick", "--lanes", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    (rows,) = json.loads(file.read_text())["rows"].values()
    assert not isinstance(rows, str), rows
    assert all(row["values"] and row["median"] >= 0 for row in rows)
    if name in LIMITS:
        assert sum(row["limit"] is not None for row in rows) == LIMITS[name]
    assert rows[0]["what"][:20] in capsys.readouterr().out


def test_a_row_that_cannot_be_measured_says_why(monkeypatch, tmp_path, capsys):
    def why(options):
        raise timing.Skipped("no reason at all")

    monkeypatch.setitem(ROWS, "nuts", why)
    main(["--only", "nuts", "--out", str(tmp_path)])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "no reason at all" in line]
    assert "nuts" in row and "skipped" in row
