"""The comparison, cell by cell."""

import copy
import io
import math
from statistics import fmean, stdev

import pytest

from bdlbench.report.tables import comparison, comparison_markdown, contents, count

METRICS = {"lppd": -5.412, "rmse": 54.321, "coverage_90": 0.911, "ess_bulk_min": 812.4, "rhat_max": 1.0123}


def run(method, *, data="diabetes", metrics=METRICS, seed=0, split=0, settings=None, **changes):
    """A record as the store returns it."""
    record = {
        "id": f"{method}-{data}-{seed}-{split}",
        "status": "complete",
        "labels": {"data": data, "model": "bnn", "network": "mlp", "inference": method},
        "config": {"seed": seed, "data": {"split": split}, "inference": settings or {}, "store": {"path": str(split)}},
        "metrics": metrics,
        "seconds": {"setup": 0.1, "compile": 1.25, "warmup": 2.0, "sample": 123.4, "predict": 0.04},
        "num_grads": {"warmup": 400_000, "sample": 812_000},
        "warnings": [],
    }
    return copy.deepcopy(record | changes)


@pytest.fixture
def three():
    """A sound run, one without a chain and with warnings, one that diverged early."""
    no_chain = METRICS | {"ess_bulk_min": None, "rhat_max": None, "lppd": math.nan}
    return [
        run("nuts"),
        run(
            "svi", metrics=no_chain, warnings=["the loss\nstill falls", "a | b"], num_grads={"warmup": 950, "sample": 0}
        ),
        run("sgld", metrics={}, status="diverged", reason="log density is nan at step 37", seconds={"setup": 0.1}),
    ]


def test_markdown(three):
    """The whole table: formats, missing values, NaN as NaN, the reason in its row, warnings below."""
    assert comparison_markdown(three) == (
        "| method | LPPD | RMSE | 90 % coverage | gradients | seconds: setup/compile/warm-up/sample/predict | ESS (min)"
        " | R-hat (max) | warnings |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---|\n"
        "| nuts | -5.412 | 54.32 | 0.911 | 1.2M | 0.1/1.2/2.0/123/0.0 | 812 | 1.012 | 0 |\n"
        "| svi | nan | 54.32 | 0.911 | 950 | 0.1/1.2/2.0/123/0.0 | – | – | 2 |\n"
        "| sgld | – | – | – | 1.2M | 0.1/–/–/–/– | – | – | diverged: log density is nan at step 37; 0 |\n"
        "\n"
        "- svi: the loss still falls\n"
        "- svi: a \\| b\n"
    )


def test_terminal_fits_80_columns(three):
    """The same cells in a terminal, exactly, no column but the outer ones broken."""
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison(three))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines == [
        "                                           seconds: setup/",
        "                        90 %              compile/warm-up/   ESS R-hat",
        "method   LPPD  RMSE coverage gradients      sample/predict (min) (max) warnings",
        "─" * 80,
        "nuts   -5.412 54.32    0.911      1.2M 0.1/1.2/2.0/123/0.0   812 1.012 0",
        "svi       nan 54.32    0.911       950 0.1/1.2/2.0/123/0.0     –     – 2",
        "sgld        –     –        –      1.2M         0.1/–/–/–/–     –     – diverged:",
        "                                                                       log",
        "                                                                       density",
        "                                                                       is nan at",
        "                                                                       step 37;",
        "                                                                       0",
        "svi: the loss still falls",
        "svi: a | b",
    ]


def test_text_is_never_markup():
    """Brackets and control characters in a method's name, a reason or a warning are printed, not obeyed."""
    from rich.console import Console

    record = run("[bold]x", status="failed", reason="[/red]", warnings=["[link]", "a\x1b[2Jb"])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison([record]))
    for text in ("[bold]x", "failed: [/red]; 2", "[link]", r"a\x1b[2Jb"):
        assert text in capture.get()


def test_several_data_sets_have_their_sections(three):
    """Rows stand under their data set; scores of both tasks have their columns."""
    classes = run("nuts", data="breast_cancer", metrics={"lppd": -0.1, "accuracy": 0.974, "coverage_90": None})
    content = contents([three[0], classes, three[1]])
    assert content.columns[:5] == ["method", "LPPD", "RMSE", "accuracy", "90 % coverage"]
    assert [(name, [row[:4] for row in rows]) for name, rows in content.sections] == [
        ("diabetes", [["nuts", "-5.412", "54.32", "–"], ["svi", "nan", "54.32", "–"]]),
        ("breast_cancer", [["nuts", "-0.100", "–", "0.974"]]),
    ]
    assert content.notes[0] == "diabetes svi: the loss still falls"
    text = comparison_markdown([three[0], classes])
    assert "**diabetes**\n\n| method" in text and "**breast_cancer**\n\n| method" in text
    assert "RMSE" not in contents([classes]).columns


def test_crps_is_shown_where_the_data_call_for_it():
    """A column beside LPPD where the notes of a run mention CRPS and a run has it; not otherwise."""
    notes = ["the target takes 6 values, so a density score can be gamed: read CRPS"]
    metrics = METRICS | {"crps": 0.3456}
    content = contents([run("nuts", data="wine", notes=notes, metrics=metrics), run("svi", data="yacht", notes=[])])
    assert content.columns[:4] == ["method", "LPPD", "CRPS", "RMSE"]
    assert [rows[0][1:4] for _, rows in content.sections] == [["-5.412", "0.3456", "54.32"], ["-5.412", "–", "54.32"]]
    assert "CRPS" not in contents([run("nuts", metrics=metrics, notes=["noise sd 0.5"])]).columns
    assert "CRPS" not in contents([run("nuts", notes=notes)]).columns


def test_namesakes_are_told_apart():
    """Runs of one method show what they differ in and nothing else: settings, labels, split, seed."""
    rows = [
        run("sgld", settings={"step_size": 1e-5, "batch": 10}, seed=0),
        run("sgld", settings={"step_size": 1e-4, "batch": 10}, seed=1),
        run("nuts", seed=7),
    ]
    names = [row[0] for _, section in contents(rows).sections for row in section]
    assert names == ["sgld step_size=1e-05 seed=0", "sgld step_size=0.0001 seed=1", "nuts"]
    other = run("nuts")
    other["labels"]["network"] = "resnet"
    other["config"]["network"] = {"depth": 3}
    names = [row[0] for _, section in contents([run("nuts"), other]).sections for row in section]
    assert names == ["nuts network=mlp", "nuts network=resnet"]


def test_aggregate_over_splits():
    """Seeds are averaged within a split, the standard error is over splits: sd of split means / sqrt(splits)."""
    lppd = {(split, seed): -5 - 0.3 * split**2 - 0.1 * seed for split in range(3) for seed in range(2)}
    rows = [
        run("nuts", split=split, seed=seed, metrics=METRICS | {"lppd": value, "ess_bulk_min": 100.0 + split})
        for (split, seed), value in lppd.items()
    ]
    means = [fmean([lppd[split, 0], lppd[split, 1]]) for split in range(3)]
    content = contents(rows, aggregate=True)
    ((_, (cells,)),) = content.sections
    assert cells[:3] == ["nuts", "3 splits", f"{fmean(means):.3f} ± {stdev(means) / math.sqrt(3):.3f}"]
    assert cells[7:] == ["100", "1.012", "0"]
    assert content.notes == [
        "± is the plain standard error over splits, seeds averaged within a split, which is too small where their rows "
        "overlap: these records do not have the numbers of rows that correct it. ESS and R-hat are the worst of the runs."
    ]


@pytest.mark.parametrize(
    ("test_sets", "factor", "says"),
    [
        (["a", "b", "c", "d"], math.sqrt(1 / 4 + 10 / 90), "Nadeau and Bengio's (2003) corrected standard error"),
        (["a", "a", "a", "a"], math.sqrt(1 / 4), "the standard error of the mean over splits with one test set"),
    ],
)
def test_aggregate_corrects_for_overlapping_splits(test_sets, factor, says):
    """Nadeau & Bengio's factor sqrt(1/J + n_test/n_train) on the sd of 4 splits of 90/10; one fixed test set has none."""
    values = [-5.0, -5.4, -4.9, -5.6]
    rows = [run("nuts", split=k, metrics=METRICS | {"lppd": value}) for k, value in enumerate(values)]
    for row, name in zip(rows, test_sets, strict=True):
        row |= {"num_rows": {"train": 90, "test": 10}, "test_checksum": name}
    rows.append(run("nuts", split=4, status="failed", reason="x", metrics={}))
    content = contents(rows, aggregate=True)
    ((_, (cells,)),) = content.sections
    assert cells[:3] == ["nuts", "4 splits", f"{fmean(values):.3f} ± {stdev(values) * factor:.3f}"]
    assert content.notes[0].startswith(f"± is {says}")
    assert content.notes[1] == "1 of 5 runs are not complete: they are counted and enter no mean."
    assert cells[-1] == "1 of 5 failed; 0"


def test_what_could_not_be_assessed_stands_in_the_table():
    """These checks are counted beside the warnings, with the reasons below. An old record does not have them."""
    rows = [run("nuts"), run("svi", not_assessed=["R-hat and ESS: the draws are no Markov chain"])]
    content = contents(rows)
    ((_, cells),) = content.sections
    assert [row[-1] for row in cells] == ["0", "0 (1 not assessed)"]
    assert content.notes == ["svi: not assessed: R-hat and ESS: the draws are no Markov chain"]


def test_aggregate_shows_failures_and_mixes_no_settings():
    """Failed runs are counted and not averaged. Another step size has another row. One run has no standard error."""
    rows = [run("sgld", seed=seed, settings={"step_size": 1e-5}) for seed in range(3)]
    rows[1] |= {"status": "failed", "reason": "out of memory", "metrics": {}}
    rows.append(run("sgld", settings={"step_size": 1e-4}))
    rows.append(run("nuts", status="failed", reason="x", metrics={}))
    ((_, cells),) = contents(rows, aggregate=True).sections
    assert [row[:3] for row in cells] == [
        ["sgld step_size=1e-05", "2 seeds", "-5.412 ± 0.000"],
        ["sgld step_size=0.0001", "1 run", "-5.412"],
        ["nuts", "–", "–"],
    ]
    assert [row[-1] for row in cells] == ["1 of 3 failed; 0", "0", "1 of 1 failed; 0"]


def test_a_mean_hides_no_missing_value():
    """If one run lacks a value there is no mean. If one value is NaN the mean is NaN."""
    rows = [
        run("nuts", seed=0),
        run("nuts", seed=1, metrics=METRICS | {"lppd": None, "rmse": math.nan, "rhat_max": math.nan}),
    ]
    ((_, (cells,)),) = contents(rows, aggregate=True).sections
    assert (cells[2], cells[3], cells[-2]) == ("–", "nan ± nan", "nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (949.6, "950"), (999.6, "1.0k"), (12_345, "12.3k"), (999_960, "1.0M"), (4e9, "4.0G"), (3e13, "30000.0G")]
    + [(None, "–"), (math.nan, "nan")],
)
def test_count(value, text):
    """Counts are rounded before their unit is chosen."""
    assert count(value) == text


def near(worth, squared_bias, *, certified=True, weak=False, price=100.0):
    test = {"worth": worth, "squared_bias": squared_bias, "weak": weak, "num_reference": 4000}
    test["gradients_per_exact_draw"] = price
    return {"reference": "diabetes", "certified": certified, "resolution": 0.1, "test": test}


def test_runs_that_have_a_reference_show_worth_and_bias():
    """Worth is averaged as a squared distance, bias as its signed square; nothing below the resolution is claimed."""
    runs = [
        run("nuts", fidelity=near(4000.0, -0.01, price=2.0)),
        run("sgld", fidelity=near(30.0, 0.09)), run("sgld", seed=1, fidelity=near(60.0, 0.07, weak=True, price=200.0)),
        run("svi"),
    ]  # fmt: skip
    columns, [(_, rows)], notes = contents(runs, aggregate=True)
    cells = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    shown = {name: [row[key] for key in ("worth", "bias", "gradients/exact draw")] for name, row in cells.items()}
    assert shown == {"nuts": ["≥ 4,000", "< 0.1", "≤ 2"], "sgld": ["40", "0.28*", "150"], "svi": ["–"] * 3}
    assert any("against the reference diabetes" in note for note in notes)
    _, _, notes = contents([run("nuts", fidelity=near(10.0, 1e-4, certified=False))])
    assert any("not certified" in note for note in notes)
    assert "worth" not in contents([run("svi")]).columns
