"""Tables for papers: means and corrected errors by hand, marks, leagues, failures, three formats."""

import copy
import csv
import io
import re

import numpy as np
import pytest
from scipy.stats import t as student

from bdlbench.errors import ConfigError
from bdlbench.report import paper, printing

SPLITS = 10


def run(method, split, lppd, *, data="diabetes", target="t", status="complete", **fields):
    return {
        "id": f"{method}-{data}-{split}-{fields.get('seed', 0)}",
        "status": status,
        "reason": "log density is nan at step 37" if status != "complete" else None,
        "labels": {"data": data, "inference": method, "seed": fields.get("seed", 0)},
        "config": {"seed": fields.get("seed", 0), "data": {"split": split}},
        "num_rows": {"train": 90, "test": 10},
        "target_id": f"{target}{data}{split}",
        "metrics": {"lppd": lppd, "coverage_90": 0.9} if status == "complete" else {},
        "warnings": fields.get("warnings", []),
        "notes": fields.get("notes", []),
        "tuning_num_grads": fields.get("tuning"),
    }


@pytest.fixture
def records():
    """NUTS is as good as SGLD (differences of .01 around none) and better than SVI (by 1); an ensemble has another model.

    On yacht two runs of SGLD have diverged, and SVI was not run.
    """
    rng, out = np.random.default_rng(0), []
    for data in ("diabetes", "yacht"):
        noise = 0.01 * rng.normal(size=SPLITS)
        noise -= noise.mean() - 1e-4  # their mean is .0001, so that NUTS is seen to be best, and their error is .0015
        for split in range(SPLITS):
            level = rng.normal()
            for seed in (0, 1):
                out.append(run("nuts", split, level + noise[split] + (seed - 0.5), data=data, seed=seed, tuning=100))
            bad = data == "yacht" and split < 2
            out.append(run("sgld", split, level, data=data, status="diverged" if bad else "complete"))
            if data == "diabetes":
                out.append(
                    run("svi", split, level - 1, data=data, warnings=["the loss | falls_"], notes=["50 % are zeros"])
                )
            out.append(run("deep_ensemble", split, level - 0.5, data=data, target="other"))
    return copy.deepcopy(out)


def test_means_errors_and_marks_are_those_by_hand(records):
    """Mean of the split means, sd of them times sqrt(1/J + n_test/n_train); equals by Student's t of paired differences."""
    same, open_league = paper.paper(records, metrics=["lppd"])
    values = {
        m: np.array([np.mean([r["metrics"]["lppd"] for r in records if r["labels"]["inference"] == m
                              and r["labels"]["data"] == "diabetes" and r["config"]["data"]["split"] == k])
                     for k in range(SPLITS)])
        for m in ("nuts", "sgld", "svi")
    }  # fmt: skip
    factor = np.sqrt(1 / SPLITS + 10 / 90)
    for method, value in values.items():
        entry = same.entries[method, "diabetes", "lppd"]
        assert (entry.mean, entry.error) == pytest.approx((value.mean(), value.std(ddof=1) * factor))
        assert (entry.num_scored, entry.num_asked) == (SPLITS, SPLITS)
        ahead = values["nuts"] - value
        contains = ahead.mean() <= student.isf(0.025, SPLITS - 1) * ahead.std(ddof=1) * factor
        assert entry.mark == ("best" if method == "nuts" else "equal" if contains else "")
    assert [same.entries[m, "diabetes", "lppd"].mark for m in values] == ["best", "equal", ""]
    assert (same.league, same.methods) == ("same posterior", ["nuts", "sgld", "svi"])
    assert (open_league.league, open_league.methods) == ("open", ["nuts", "sgld", "svi", "deep_ensemble"])
    assert open_league.headings == ["diabetes", "yacht"]


def test_less_is_better_where_it_is_and_nothing_is_marked_where_nothing_is_best(records):
    for record in records:
        if record["metrics"]:
            record["metrics"]["rmse"] = -record["metrics"]["lppd"]
    same, coverage, _, _ = paper.paper(records, metrics=["rmse", "coverage_90"])
    assert same.entries["nuts", "diabetes", "rmse"].mark == "best"
    assert not any(entry.mark for entry in coverage.entries.values())
    assert "rmse: in the unit of the target; less is better." in same.notes
    one = paper.paper([r for r in records if r["config"]["data"]["split"] == 3], metrics=["lppd"])[0]
    assert {(entry.error, entry.mark) for entry in one.entries.values()} == {(None, "")}
    assert any("there is one split" in note for note in one.notes)


def test_failures_are_counted_and_not_marked(records):
    """The mean over the other splits stands with their number; the method that was not run has no number at all."""
    same, _ = paper.paper(records, metrics=["lppd"])
    sgld = same.entries["sgld", "yacht", "lppd"]
    assert (sgld.num_scored, sgld.num_asked, sgld.mark) == (SPLITS - 2, SPLITS, "")
    assert same.entries["svi", "yacht", "lppd"][:3] == (None, None, 0)
    assert same.entries["nuts", "yacht", "lppd"].mark == ""  # there is nothing to be better than
    notes = "\n".join(same.notes)
    assert "sgld, yacht: 2 of 10 runs diverged, the first because: log density is nan at step 37" in notes
    assert "svi, diabetes (10x): the loss | falls_" in notes
    assert "diabetes: 50 % are zeros" in notes
    assert "chosen on the same data set" not in notes
    for record in records:
        record["config"]["tuned_for"] = {"network": "mlp"} if record["labels"]["data"] == "yacht" else None
    tuned = paper.paper(records, metrics=["lppd"])[0].notes
    assert "Runs on yacht have settings that were chosen on the same data set." in tuned
    assert "Not tuned, or with settings whose search was not priced: sgld, svi." in notes
    assert "diabetes (10 splits), yacht (10 splits): ± is Nadeau and Bengio's (2003) corrected" in notes


def test_formats_print_the_same_numbers_and_escape_foreign_text(records):
    papers = paper.paper(records, metrics=["lppd"])
    markdown, latex = paper.as_markdown(papers), paper.as_latex(papers)
    entry = papers[0].entries["nuts", "diabetes", "lppd"]
    value, error = re.search(r"\| nuts \| \*\*(\S+) ± (\S+)\*\* \|", markdown).groups()
    assert float(error) == pytest.approx(entry.error, rel=0.05)  # two digits
    assert float(value) == pytest.approx(entry.mean, abs=0.05 * entry.error)
    assert rf"nuts & $\mathbf{{{value}}} \pm {error}$ & " in latex
    assert r"\dag{} & " in latex and " † |" in markdown
    assert r"deep\_ensemble" in latex and r"the loss \textbar{} falls\_" in latex and r"50 \% are zeros" in latex
    assert r"the loss \| falls\_" in markdown or r"the loss \| falls_" in markdown
    assert latex.count(r"\begin{tabular}{lrr}") == 2 and "(8/10)" in latex and "(8/10)" in markdown
    rows = list(csv.DictReader(io.StringIO(paper.as_csv(papers))))
    assert len(rows) == 2 * (3 + 4)
    assert float(rows[0]["mean"]) == entry.mean and rows[0]["mark"] == "best"
    assert [row["mean"] for row in rows if row["method"] == "svi" and row["data"] == "yacht"] == ["", ""]


def test_columns_may_be_metrics(records):
    """Then each data set has a table of its own."""
    tables = paper.paper(records, metrics=["lppd", "coverage_90"], columns="metric")
    assert [one.title for one in tables] == [
        "diabetes, same posterior",
        "yacht, same posterior",
        "diabetes, open",
        "yacht, open",
    ]
    assert tables[0].headings == ["lppd", "coverage_90"]


@pytest.mark.parametrize("text", [r"a & b_c \x {y} 50% $1 #2 ~ ^ <|>", "-1.5 of x-1", "a\nb\x1b[2J"])
def test_foreign_text_cannot_break_a_table(text):
    """It stays in its cell: as many unescaped separators and line ends as a harmless text leaves."""

    def shape(cell):
        sheet = printing.Sheet(cell, [cell], [[cell]], [cell], "l")
        latex = printing.as_latex([sheet])
        free = re.sub(r"\\[\\&%$#_{}]", "", latex)
        return (
            len(latex.splitlines()),
            free.count("&"),
            free.count("%"),
            free.count("\x1b"),
            len(printing.as_markdown([sheet]).splitlines()),
        )

    assert shape(text) == shape("harmless")
    assert next(csv.reader(io.StringIO(printing.as_csv([text], [])))) == [text]


def test_unfit_requests_are_refused(records):
    with pytest.raises(ConfigError, match="--metric: no run has 'speed'"):
        paper.paper(records, metrics=["speed"])
    with pytest.raises(ConfigError, match="--rho: 1"):
        paper.paper(records, metrics=["lppd"], rho=1.0)
    unknown = [{key: value for key, value in record.items() if key != "num_rows"} for record in records]
    assert any(
        "is too small where their rows overlap" in note for note in paper.paper(unknown, metrics=["lppd"])[0].notes
    )
    given = paper.paper(unknown, metrics=["lppd"], rho=0.1)[0]
    assert given.entries == paper.paper(records, metrics=["lppd"])[0].entries
