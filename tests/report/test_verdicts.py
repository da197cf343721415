"""Verdicts from records: the leagues, the pairing, the three formats. Sampling has its own tests, so one data set serves."""

import copy

import numpy as np
import pytest

from bdlbench.errors import ConfigError
from bdlbench.evaluation import verdicts as evaluation
from bdlbench.report import verdicts

RNG = np.random.default_rng(0)


def run(method, split, lppd, *, seed=0, target="t", data="diabetes", status="complete", **config):
    return {
        "id": f"{method}-{data}-{split}-{seed}",
        "status": status,
        "labels": {"data": data, "inference": method},
        "config": {"seed": seed, "data": {"split": split, "test_fraction": 0.2} | config},
        "target_id": f"{target}{split}",
        "metrics": {"lppd": lppd, "rmse": 50.0, "standardized": {"rmse": -lppd}} if status == "complete" else {},
        "warnings": [],
    }


@pytest.fixture
def records():
    """NUTS and SGLD sample one posterior on ten splits with two seeds; a deep ensemble has another model."""
    out = []
    for split in range(10):
        level = RNG.normal()
        for seed in (0, 1):
            out.append(run("nuts", split, level + 0.2 + 0.01 * RNG.normal(), seed=seed))
            out.append(run("sgld", split, level + 0.01 * RNG.normal(), seed=seed))
        out.append(run("ensemble", split, level + RNG.normal(), target="other"))
    return copy.deepcopy(out)


def test_pairs_are_differences_on_one_split_with_seeds_averaged(records):
    """By hand, with rho from the configuration; the level of a split, which is 50 times larger, has gone."""
    (pair,) = [one for one in verdicts.pairs(records, "lppd") if {one.first, one.second} == {"nuts", "sgld"}]
    of = {
        (method, split): np.mean([
            r["metrics"]["lppd"] for r in records if r["labels"]["inference"] == method and r["config"]["data"]["split"] == split
        ])
        for method in ("nuts", "sgld")
        for split in range(10)
    }  # fmt: skip
    by_hand = evaluation.difference([of["nuts", i] - of["sgld", i] for i in range(10)], rho=0.2)
    assert pair.by_data["diabetes"] == pytest.approx(by_hand)
    assert pair.league == verdicts.SAME
    less = verdicts.pairs(records, "rmse")[0]
    assert less.by_data["diabetes"].mean == pytest.approx(by_hand.mean)  # the standardised one, and less is better


def test_leagues_never_share_a_table(records):
    """Pairs with equal targets are in the first table and others in the second.

    Each has the expected false verdicts.
    """
    same, open_league = verdicts.compare(records, metric="lppd", delta=0.02, with_plan=True)
    assert [row[:2] for row in same.rows] == [["nuts", "sgld"]]
    assert same.rows[0][9] == "better"
    assert {tuple(row[:2]) for row in open_league.rows} == {("nuts", "ensemble"), ("sgld", "ensemble")}
    assert any(
        "No number of splits decides" in note or "splits of each data set decide" in note for note in open_league.notes
    )
    assert same.notes[-1].startswith("Expected number of false verdicts in this table: 0.0")
    (only,) = verdicts.compare(records, metric="lppd", delta=0.02, baseline="ensemble")
    assert {row[1] for row in only.rows} == {"ensemble"}


def test_a_failed_run_is_shown_and_decides_nothing(records):
    """The split is counted and there is no verdict. Without this split, the failed method would look better."""
    failed = [r if r["id"] != "sgld-diabetes-3-1" else run("sgld", 3, 0.0, seed=1, status="failed") for r in records]
    same = verdicts.compare(failed, metric="lppd", delta=0.02)[0]
    assert same.rows[0][3] == "9"
    assert same.rows[0][9] == "incomplete"
    assert any("1 splits with a failed run" in note for note in same.notes)


def test_formats(records):
    """Markdown and LaTeX escape their special characters. In CSV the first column is the league."""
    leagues = [
        verdicts.League(
            "same posterior", [["a_1", "b|c", "x", "2", "0.1", "0 to 1", *["0.5"] * 3, "better", "1"]], ["50 %"]
        )
    ]
    assert "| a_1 | b\\|c |" in verdicts.as_markdown(leagues)
    text = verdicts.as_latex(leagues)
    assert r"a\_1 & b\textbar{}c & x" in text
    assert r"50 \%" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert rf"\begin{{tabular}}{{{verdicts._ALIGNED}}}" in text and len(verdicts._ALIGNED) == len(verdicts._COLUMNS)
    assert verdicts.as_csv(leagues).splitlines()[1] == "same posterior,a_1,b|c,x,2,0.1,0 to 1,0.5,0.5,0.5,better,1"


def test_unfit_requests_are_refused(records):
    """Each message names field, fault and remedy."""
    with pytest.raises(ConfigError, match="--metric: 'coverage_90' does not say"):
        verdicts.compare(records, metric="coverage_90", delta=0.1)
    with pytest.raises(ConfigError, match="--baseline: no method is called 'svi'"):
        verdicts.compare(records, metric="lppd", delta=0.1, baseline="svi")
    with pytest.raises(ConfigError, match="same splits"):
        verdicts.compare(records[:2], metric="lppd", delta=0.1)
    for record in records:
        del record["config"]["data"]["test_fraction"]
    with pytest.raises(ConfigError, match="--rho: the share of test rows of 'diabetes'"):
        verdicts.compare(records, metric="lppd", delta=0.1)
    assert verdicts.compare(records, metric="lppd", delta=0.1, rho=0.2)
    for record in records:
        record["test_checksum"] = "one"
    with pytest.raises(ConfigError, match="--rho: the splits of 'diabetes' share one test set"):
        verdicts.compare(records, metric="lppd", delta=0.1)


def test_rows_of_the_records_say_how_far_splits_overlap(records):
    """rho is n_test / (n_test + n_train) of the runs; without numbers of rows it is the configuration's share."""
    assert verdicts.pairs(records, "lppd")[0].by_data["diabetes"].rho == 0.2
    for record in records:
        record["num_rows"] = {"train": 60, "test": 20}
    assert verdicts.pairs(records, "lppd")[0].by_data["diabetes"].rho == pytest.approx(0.25)
