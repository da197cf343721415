"""The benchmarks walk through; nothing about their figures is asserted but what holds on any machine."""

import json

import pytest

from benchmarks import timing
from benchmarks.__main__ import ROWS, main


def test_measures_take_turns_and_the_first_round_is_thrown_away():
    order = []
    found = timing.in_turns({"a": lambda: order.append("a") or 2.0, "b": lambda: order.append("b") or 1.0}, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert timing.ratios(found["a"], found["b"]) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("sgld", 1),
        ("svi", 1),
        ("linear_regression", 1),
        ("checkpoints", 1),
        ("found", 1),
        ("store_table", 1),
        ("deep_ensemble", 2),
    ],
)
def test_rows_are_measured_and_kept(name, limits, tmp_path, capsys):
    assert main(["--only", name, "--repeat", "1", "--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    (rows,) = json.loads(file.read_text())["rows"].values()
    assert not isinstance(rows, str), rows
    assert all(row["values"] and row["median"] >= 0 for row in rows)
    assert sum(row["limit"] is not None for row in rows) == limits
    assert rows[0]["what"][:20] in capsys.readouterr().out


def test_a_row_that_cannot_be_measured_says_why(monkeypatch, tmp_path, capsys):
    def why(options):
        raise timing.Skipped("no reason at all")

    monkeypatch.setitem(ROWS, "nuts", why)
    main(["--only", "nuts", "--out", str(tmp_path)])
    assert "skipped: no reason at all" in capsys.readouterr().out
