"""The experiments of decisions: kept cells, summaries, baselines in closed form, costs, and pages that agree with the tables."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import cells
from experiments.driving import driving
from experiments.medicine import medicine
from tools import readme

ROOT = Path(__file__).parents[2]
PAGES = readme.with_blocks(ROOT / "experiments")


# ---- cells


def test_a_stopped_experiment_goes_on(tmp_path, capsys):
    """Kept cells are not computed again; a torn last line is, and other options are another cell."""
    file, ran = tmp_path / "cells.jsonl", []

    def run(cell):
        ran.append(cell["k"])
        return {"score": float(cell["k"])}

    every = [{"k": k, "options": {"steps": 3}} for k in range(3)]
    _, first = cells.compute(every[:2], cells.Cells(file), run, 1.0)
    with file.open("a") as torn:
        torn.write('{"cell": {"k": 2')
    assert cells.compute(every, cells.Cells(file), run, 1.0, only_kept=True) == (every[:2], first)
    _, again = cells.compute(every, cells.Cells(file), run, 1.0)
    assert ran == [0, 1, 2]
    assert again[:2] == first
    assert [result["score"] for result in again] == [0.0, 1.0, 2.0]
    assert "about 0.3 minutes of one core for the other 1" in capsys.readouterr().out
    assert all(json.loads(line) for line in file.read_text().splitlines())
    cells.compute([every[0] | {"options": {"steps": 4}}], cells.Cells(file), run, 1.0)
    assert ran == [0, 1, 2, 0]


def test_a_summary_is_a_student_interval_and_is_read_back(tmp_path):
    """Against scipy's own interval; a single value has none; a metric that is absent is left out."""
    from scipy.stats import t

    every = [{"m": name} for name in ("a", "a", "a", "b")]
    results = [{"v": 1.0}, {"v": 2.0}, {"v": 4.0}, {"v": 5.0, "w": None}]
    lines = cells.summarise(every, results, ["m"], ["v", "w"])
    cells.write(tmp_path / "t.csv", ["m"], "small", lines)
    found = cells.read(tmp_path / "t.csv")
    x = np.array([1.0, 2.0, 4.0])
    low, high = t.interval(0.95, 2, x.mean(), x.std(ddof=1) / np.sqrt(3))
    line = found.lines[("a",), "v"]
    np.testing.assert_allclose([line.mean, line.low, line.high], [x.mean(), low, high], rtol=1e-4)  # five digits kept
    assert found.size == "small"
    assert found.groups() == [("a",), ("b",)]
    assert found.shown(("b",), "v", 1, with_interval=True) == "5.0"
    assert found.shown(("b",), "w", 1) == "–"


# ---- driving


def test_intervals_of_least_squares_cover_where_the_law_is_right_and_nowhere_else():
    """Student's prediction interval is exact under the true law: its coverage over 400 data sets is 90 %.

    A data set is one observation, since its test rows share one fit. The bound of 5 standard errors is passed by all but
    one seed in a million.
    """
    for truth, right in (("physics", "v^2"), ("physics and reaction", "v, v^2")):
        found = []
        for data_set in range(400):
            data = driving.rows(data_set, truth)
            v = np.concatenate([data.far_x[:, 0], data.near_x[:, 0], driving.GRID])
            y = np.concatenate([data.far_y, data.near_y, driving.law(driving.GRID, truth)])
            found.append(driving.least_squares(right, data, v, y))
        for name in ("coverage", "near_coverage", "mu_inside"):
            values = np.array([each[name] for each in found])
            assert abs(values.mean() - driving.LEVEL) < 5 * values.std(ddof=1) / np.sqrt(len(values)), (truth, name)
    wrong = driving.least_squares("v^2", data, v, y)
    assert wrong["coverage"] == 0.0


def test_the_two_laws_share_speeds_and_noise():
    """They differ by the reaction's v times 1 s; the asked speeds are from 30 to 40 m/s, the trained ones from 5 to 25."""
    one, other = driving.rows(3, "physics"), driving.rows(3, "physics and reaction")
    np.testing.assert_allclose(other.y - one.y, driving.REACTION * one.x[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(one.far_x, other.far_x)
    assert 30 <= one.far_x.min() < one.far_x.max() <= 40
    assert 5 <= one.x.min() < one.x.max() <= 25
    assert len(one.x) == driving.ROWS


# ---- medicine


def test_training_sets_are_disjoint_and_test_rows_fixed():
    """Five times sixty rows are the 300 rows for training, none of which is a test row."""
    train, test = medicine.patients()
    parts = [medicine.training_rows(k) for k in range(medicine.TRAINING_SETS)]
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), train.x)
    assert {len(part.y) for part in parts} == {medicine.SET_ROWS}
    assert len(test.y) == medicine.TEST_ROWS
    seen = {row.tobytes() for row in train.x}
    assert not any(row.tobytes() in seen for row in test.x)
    assert train.y.sum() + test.y.sum() == 212  # the malignant tumours of the data set


@pytest.mark.parametrize("c", [0.05, 0.5, 1.0])
def test_decisions_have_the_smallest_expected_cost(c):
    """The cost of the decision, averaged over y ~ p, is the smallest of the three expected costs."""
    p = np.linspace(0.0, 1.0, 2001)
    at = [medicine.decision_costs(p, np.full(len(p), y), c) for y in (0, 1)]
    expected = (1 - p) * at[0] + p * at[1]
    np.testing.assert_allclose(expected, np.minimum(np.minimum(10 * p, 1 - p), c), atol=1e-12)


def test_scores_of_rows_by_hand():
    """Three patients: a cancer that is missed, a false alarm, and one that is referred."""
    p, y = np.array([[0.01, 0.99, 0.5]]), np.array([1, 0, 1])
    found = medicine.per_row(p, y)
    np.testing.assert_allclose(found["cost 0.2"], [[10.0, 1.0, 0.2]])
    np.testing.assert_allclose(found["referred 0.2"], [[0, 0, 1]])
    np.testing.assert_allclose(found["missed"], [[1, 0, 0]])
    np.testing.assert_allclose(found["errors"], [[1, 1, 1]])  # at 1/2 the first class, "benign", is said
    np.testing.assert_allclose(found["nll"], -np.log([[0.01, 0.01, 0.5]]))


def test_the_temperature_is_the_best_one():
    """No other T between 1/20 and 20 has a smaller NLL; overconfident log odds get one above 1."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=200) * 2
    y = (rng.uniform(size=200) < 1 / (1 + np.exp(-log_odds))).astype(int)

    def nll(t):
        return np.logaddexp(0, -(2 * y - 1) * 4 * log_odds / t).mean()

    t = medicine.temperature(4 * log_odds, y)
    assert t > 1
    assert nll(t) <= min(nll(each) for each in np.geomspace(1 / 20, 20, 4001)) + 1e-9


# ---- pages


def test_there_are_pages():
    assert {page.parent.name for page in PAGES} >= {"driving"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_tables_of_a_page_are_those_of_its_csv(page):
    """Writing the blocks again changes nothing: ``make readme``."""
    text = page.read_text(encoding="utf-8")
    assert readme.with_new_blocks(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_figures_of_a_verdict_stand_in_the_tables(page):
    """Each decimal number of the section "Verdict" stands in a block of the page too, rounded as there."""
    text = page.read_text(encoding="utf-8")
    verdict = text.split("\n## Verdict\n")[1].split("\n## ")[0]
    known = {number for block in readme.BLOCK.findall(text) for number in re.findall(r"-?\d+\.\d+", block[3])}
    said = re.findall(r"(?<![\w.])-?\d+\.\d+(?![\w])", verdict)
    assert said
    assert not [number for number in said if number not in known]


def test_blocks_are_written_again(tmp_path, monkeypatch, capsys):
    """Old content goes, the text around it stays, and a second time changes nothing."""
    monkeypatch.setitem(
        sys.modules, "made_up", importlib.util.module_from_spec(importlib.machinery.ModuleSpec("made_up", None))
    )
    sys.modules["made_up"].rows = lambda: "new"
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- made_up:rows, written by `make readme` -->\nold\n<!-- end -->\nb\n")
    assert readme.main([str(page)]) == 0
    once = page.read_text()
    assert once == "a\n<!-- made_up:rows, written by `make readme` -->\n\nnew\n\n<!-- end -->\nb\n"
    assert readme.main([str(page)]) == 0
    assert page.read_text() == once


# ---- whole


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [driving, medicine], ids=["driving", "medicine"])
def test_the_small_size_runs_and_is_found_again(experiment, tmp_path, capsys):
    """The command prints its price and its table, writes nothing but its cells, and computes nothing the second time."""
    words = ["--size", "small", "--cells", str(tmp_path / "cells"), "--tables", str(tmp_path / "tables")]
    assert experiment.main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{len(experiment.every_cell(experiment.SIZES['small']))} cells, of which 0 are kept")
    assert not (tmp_path / "tables").exists()
    assert experiment.main(words) == 0
    again = capsys.readouterr().out
    assert "for the other 0" in again
    assert again.split("\n\n", 1)[1] in said
