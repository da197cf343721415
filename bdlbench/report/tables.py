"""The comparison table, with a row for each run or for each method over splits and seeds, for terminal or Markdown."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bdlbench.data.problems import problems
from bdlbench.metrics.fidelity import in_words
from bdlbench.metrics.resampling import corrected_error
from bdlbench.report.escaping import markdown, printable
from bdlbench.store.records import flatten

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]
MISSING = "–"
NONE = "does not exist"
"""In place of a score that a likelihood does not have, as Cauchy's has no mean to be off by."""
PHASES = ("setup", "compile", "warmup", "sample", "predict")
_SECONDS = "seconds: setup/compile/warm-up/sample/predict"
_TITLES = {"crps": "CRPS", "rmse": "RMSE"}
"""Scores in the units of the target. Their magnitude depends on the data, so they are shown with four digits."""
_PARTS = ("model", "network", "prior", "likelihood")
_HEADINGS = {
    "90 % coverage": "90 %\ncoverage",
    "gradients/exact draw": "gradients/\nexact draw",
    "ESS (min)": "ESS\n(min)",
    "R-hat (max)": "R-hat\n(max)",
    _SECONDS: "seconds: setup/\ncompile/warm-up/\nsample/predict",
}
_SHORT = 110
FIDELITY = ("worth", "bias", "gradients/exact draw")
"""Columns of runs that were compared with a reference posterior."""


class Comparison(NamedTuple):
    """The content that the terminal and the Markdown table show: cells of text, grouped by data set."""

    columns: list[str]
    sections: list[tuple[str, list[list[str]]]]
    """The name of each data set and its rows."""
    notes: list[str]
    """Sentences below the table: the meaning of ±, then the warnings."""


def comparison(records: Sequence[Record], *, aggregate: bool = False) -> "Table":
    """The comparison of methods as a table for the terminal.

    Parameters
    ----------
    records : sequence of mappings
        Records of finished runs, as :meth:`bdlbench.store.Store.record` returns them.
    aggregate : bool
        Whether runs that differ only in seed and split share one row. It shows means, and standard errors of the
        scores. With several splits it is Nadeau & Bengio's (2003) corrected standard error of the mean over splits,
        sqrt(1 / J + n_test / n_train) times the standard deviation of the J means over the seeds of a split, because the
        rows of random splits overlap. If all splits have one test set, it is the plain one. With one split it is that of
        the mean over seeds. ESS and R-hat are the worst of the runs. Only complete runs enter; the others are counted.

    Returns
    -------
    rich.table.Table
        The columns are: method; LPPD; CRPS if the notes of a run's data recommend it; RMSE and accuracy, as far as the
        records have them; coverage of the 90 % interval; gradients (warm-up, sampling and the run that it was started
        from, in evaluations on the full data); worth, bias and gradients per exact draw at test points, if a run was
        compared with a reference posterior; gradients that the search for tuned settings used, if a run has such
        settings; seconds by phase; the smallest bulk ESS and the largest R-hat in function space; and the number of
        warnings and of checks that could not be made, whose text is below the table. A value that a record does not have
        is "–", and a score that its likelihood does not have "does not exist", with the reason below the table. A run that
        is not complete shows its status and reason.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    content = contents(records, aggregate=aggregate)
    caption = escape("\n".join(map(printable, content.notes)))
    # Only the first and the last column may wrap, so that the table fits into 80 characters.
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=caption or None,
        caption_justify="left",
        caption_style="none",
    )
    for column in content.columns:
        outer = column in ("method", "warnings")
        heading = escape(_HEADINGS.get(column, column))
        width = len("diverged:") if column == "warnings" else None
        justify: Literal["left", "right"] = "left" if outer else "right"
        table.add_column(heading, justify=justify, no_wrap=not outer, overflow="fold", min_width=width)
    for data, rows in content.sections:
        if len(content.sections) > 1:
            table.add_row(f"[bold]{escape(printable(data))}[/bold]")
        for cells in rows:
            table.add_row(*(escape(printable(cell)).replace(NONE, "does\nnot exist") for cell in cells))
        table.add_section()
    return table


def comparison_markdown(records: Sequence[Record], *, aggregate: bool = False) -> str:
    """The comparison as Markdown: a table for each data set, and the notes as a list below."""
    content = contents(records, aggregate=aggregate)
    lines: list[str] = []
    for data, rows in content.sections:
        if len(content.sections) > 1:
            lines += [f"**{_cell(data)}**", ""]
        lines.append(f"| {' | '.join(content.columns)} |")
        lines.append(
            "|" + "|".join("---" if name in ("method", "warnings") else "---:" for name in content.columns) + "|"
        )
        lines += [f"| {' | '.join(map(_cell, cells))} |" for cells in rows]
        lines.append("")
    lines += [f"- {_cell(note)}" for note in content.notes]
    return "\n".join(lines).strip() + "\n"


def contents(records: Sequence[Record], *, aggregate: bool = False) -> Comparison:
    """The cells and notes of the comparison as text. The parameters are those of :func:`comparison`."""
    groups = grouped(records) if aggregate else [[record] for record in records]
    names = method_names([group[0] for group in groups], ignore_runs=aggregate)
    metrics = {key for record in records for key in record["metrics"]}
    accuracy = ["accuracy"] if "accuracy" in metrics else []
    rmse = ["rmse"] if "rmse" in metrics or not accuracy else []
    # If few distinct target values make a density score misleading, the notes of the data name CRPS instead.
    gamed = any("CRPS" in note for record in records for note in record.get("notes") or ())
    crps = ["crps"] if gamed and "crps" in metrics else []
    scores = [("lppd", "LPPD"), *((key, _TITLES.get(key, key)) for key in crps + rmse + accuracy)]
    scores.append(("coverage_90", "90 % coverage"))

    beside = any(record.get("fidelity") for record in records)
    tuned = any(record.get("tuning_num_grads") is not None for record in records)
    several = len({record["labels"].get("data") for record in records}) > 1
    sections: dict[str, list[list[str]]] = {}
    notes: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    over: dict[str, str] = {}
    left_out = 0
    for name, group in zip(names, groups, strict=True):
        finished = [record for record in group if record["status"] == "complete"] if aggregate else group
        spread, unit = _repeats(finished) if aggregate else ([], "")
        cells = [name]
        if aggregate:
            cells.append(unit or MISSING)
        for key, _ in scores:
            cells.append(_score(key, finished, spread))
        if len(spread) > 1:
            over |= meaning_of_error(unit, finished)
        left_out += len(group) - len(finished)
        cells.append(count(_mean([_gradients(record) for record in finished])))
        if beside:
            cells += _fidelity(finished)
        if tuned:
            cells.append(count(_mean([record.get("tuning_num_grads") for record in finished])))
        cells.append(
            "/".join(_seconds(_mean([record["seconds"].get(phase) for record in finished])) for phase in PHASES)
        )
        cells.append(_number(_worst(min, [record["metrics"].get("ess_bulk_min") for record in finished]), ".0f"))
        cells.append(_number(_worst(max, [record["metrics"].get("rhat_max") for record in finished]), ".3f"))
        cells.append(_state(group, aggregate))
        data = str(group[0]["labels"].get("data") or MISSING)
        sections.setdefault(data, []).append(cells)
        for record in group:
            for warning in record["warnings"]:
                notes.setdefault(shorten(warning), []).append(f"{data} {name}" if several else name)
            for check in record.get("not_assessed") or ():
                missing.setdefault(shorten(check), []).append(f"{data} {name}" if several else name)
            for key, why in (record.get("not_existing") or {}).items():
                if any(key == shown for shown, _ in scores):
                    text = f"{dict(scores)[key]} does not exist: {why}"
                    notes.setdefault(shorten(text), []).append(f"{data} {name}" if several else name)

    columns = ["method", *(["over"] if aggregate else []), *(title for _, title in scores)]
    columns += ["gradients", *(FIDELITY if beside else []), *(["tuning"] if tuned else [])]
    columns += [_SECONDS, "ESS (min)", "R-hat (max)", "warnings"]
    below = []
    if over:
        below.append(f"± is {'; '.join(over[key] for key in sorted(over))}. ESS and R-hat are the worst of the runs.")
    for text in dict.fromkeys(_reference(record["fidelity"]) for record in records if record.get("fidelity")):
        below.append(text)
    if any((record.get("fidelity") or {}).get("test", {}).get("weak") for record in records):
        below.append("*: from one or two chains, which may all miss a mode.")
    if left_out:
        below.append(f"{left_out} of {len(records)} runs are not complete: they are counted and enter no mean.")
    below += footnotes(notes) + footnotes({f"not assessed: {text}": owners for text, owners in missing.items()})
    return Comparison(columns, list(sections.items()), below)


def footnotes(owners_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Each text after the names of the rows that it is about. A name that has it several times has the count."""
    out = []
    for text, owners in owners_of.items():
        counts = {owner: owners.count(owner) for owner in dict.fromkeys(owners)}
        out.append(f"{', '.join(f'{o} ({n}x)' if n > 1 else o for o, n in counts.items())}: {text}")
    return out


def tuned_on_themselves(records: Iterable[Record]) -> list[str]:
    """A sentence that names the data sets on which settings of these runs were chosen, if there are any."""
    sets = {str(r["labels"].get("data")) for r in records if (r.get("config") or {}).get("tuned_for")}
    if not sets:
        return []
    tuning = sorted(sets & set(problems().tuning))
    return [f"Runs on {', '.join(tuning)} have settings that were chosen on the same data set."] if tuning else []


def _fidelity(records: Sequence[Record]) -> list[str]:
    """The cells of worth, bias and gradients per exact draw. Of several runs they are those of the mean squared distance."""
    blocks = [record.get("fidelity") for record in records]
    found = [block["test"] for block in blocks if block]
    if not found or len(found) < len(blocks):
        return [MISSING] * len(FIDELITY)
    worth = 1 / fmean(1 / one["worth"] for one in found)
    squared = fmean(one["squared_bias"] for one in found)
    bias, finest = math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else squared, _resolution(blocks)
    shown = f"< {finest:g}" if bias < finest else _number(bias, ".2f")
    price = count(_mean([one["gradients_per_exact_draw"] for one in found]))
    ceiling = min(one["num_reference"] for one in found)
    if worth >= ceiling:
        price = f"≤ {price}"
    return [in_words(worth, ceiling), shown + ("*" if any(one["weak"] for one in found) else ""), price]


def _resolution(blocks: Sequence[Any]) -> float:
    """The smallest bias that the references of some runs can tell from none; 0 of those that have no certificate."""
    return max(block["resolution"] if block["certified"] else 0.0 for block in blocks)


def _reference(found: Mapping[str, Any]) -> str:
    text = f"worth (in exact draws) and bias (in sd) at test points are against the reference {found['reference']}"
    if not found["certified"]:
        return f"{text}, which is not certified."
    return f"{text}, which resolves no less than {found['resolution']:g} sd."


def count(value: float | None) -> str:
    """A count with at most one decimal and a unit of thousands: 950, 12.3k, 1.2M, 4.0G."""
    if value is None or not math.isfinite(value):
        return _number(value, "")
    for unit in ("", "k", "M", "G"):
        text = f"{value:.1f}" if unit else f"{value:.0f}"
        if abs(float(text)) < 1000 or unit == "G":
            break
        value /= 1000
    return text + unit


def grouped(records: Iterable[Record]) -> list[list[Record]]:
    """Group the records that differ only in seed and split."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        key = json.dumps(
            [record["labels"].get("data"), _method(record), _settings(record)], sort_keys=True, default=str
        )
        groups.setdefault(key, []).append(record)
    return list(groups.values())


def by_method(records: Iterable[Record]) -> dict[str, dict[tuple[str, Any], list[Record]]]:
    """The runs of each method by data set and split. Settings that differ on one data set make methods of their own."""
    groups = grouped(records)
    names = method_names([group[0] for group in groups], ignore_runs=True)
    out: dict[str, dict[tuple[str, Any], list[Record]]] = {}
    for name, group in zip(names, groups, strict=True):
        for record in group:
            place = (str(record["labels"].get("data")), split_of(record))
            out.setdefault(name, {}).setdefault(place, []).append(record)
    return out


def score_of_split(runs: Sequence[Record], metric: str, *, standardized: bool = False) -> float | None:
    """The mean of a metric over the seeds of one split, None if a run is not complete or has no finite value."""
    values = []
    for record in runs:
        scores = record["metrics"]
        value = (scores.get("standardized") or {}).get(metric) if standardized else scores.get(metric)
        if record["status"] != "complete" or value is None or not math.isfinite(value):
            return None
        values.append(value)
    return fmean(values)


def _settings(record: Record) -> dict[str, Any]:
    """The leaves of the configuration, without seed, split, paths, and settings that change no number."""
    skip = ("seed", "split", "data.split", "rerun", "progress")
    leaves = flatten(record.get("config") or {})
    apart = ("store.", "paths.", "report.", "metrics.", "hydra.", "tuned_for", "tuning_num_grads")
    given = {key: value for key, value in leaves if key not in skip and not key.startswith(apart)}
    for name, default in (("warm_start", None), ("precision", "float32")):
        if given.get(name) == default:  # records that were written before these options existed lack them
            given.pop(name, None)
    return given


def _method(record: Record) -> str:
    return str(record["labels"].get("inference") or record["labels"].get("model") or record.get("id") or MISSING)


def _seed(record: Record) -> Any:
    return record["labels"].get("seed", (record.get("config") or {}).get("seed"))


def split_of(record: Record) -> Any:
    """The split of a run: its label, or the option of its data set; None if it has neither."""
    config = record.get("config") or {}
    data = config.get("data")
    nested = data.get("split") if isinstance(data, Mapping) else None
    return record["labels"].get("split", nested if nested is not None else config.get("split"))


def method_names(records: Sequence[Record], *, ignore_runs: bool) -> list[str]:
    """The name of each row: its method, and what differs between rows of the same method on the same data.

    This may be labels, settings and, unless ``ignore_runs``, split and seed.
    """
    names = [_method(record) for record in records]
    namesakes: dict[tuple[str, Any], list[int]] = {}
    for place, record in enumerate(records):
        namesakes.setdefault((names[place], record["labels"].get("data")), []).append(place)
    for places in namesakes.values():
        labels = {name: [records[place]["labels"].get(name) for place in places] for name in _PARTS}
        settings = [_settings(records[place]) for place in places]
        apart = {name: values for name, values in labels.items() if _differ(values)}
        for key in dict.fromkeys(key for one in settings for key in one):
            values = [one.get(key) for one in settings]
            if key.split(".")[0] not in apart and _differ(values):  # if the network differs, its settings differ too
                apart[key] = values
        if not ignore_runs:
            runs = {"split": split_of, "seed": _seed}
            apart |= {
                name: values for name, of in runs.items() if _differ(values := [of(records[place]) for place in places])
            }
        leaves = [key.split(".")[-1] for key in apart]
        for index, place in enumerate(places):
            for key, leaf in zip(apart, leaves, strict=True):
                names[place] += f" {leaf if leaves.count(leaf) == 1 else key}={apart[key][index]}"
    return names


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def _repeats(records: Sequence[Record]) -> tuple[list[list[Record]], str]:
    """The splits or seeds over which a standard error is computed, each as a list of runs to average, and a text."""
    splits: dict[Any, list[Record]] = {}
    for record in records:
        splits.setdefault(split_of(record), []).append(record)
    if len(splits) > 1:
        return list(splits.values()), f"{len(splits)} splits"
    unit = "seeds" if len(records) != 1 else "run"
    return [[record] for record in records], f"{len(records)} {unit}" if records else ""


def _score(key: str, records: Sequence[Record], spread: Sequence[Sequence[Record]]) -> str:
    if any(key in (record.get("not_existing") or {}) for record in records):
        return NONE
    style = ".4g" if key in _TITLES else ".3f"
    values = [record["metrics"].get(key) for record in records]
    mean = _mean(values)
    if len(spread) < 2 or mean is None:
        return _number(mean, style)
    means = [fmean(record["metrics"][key] for record in unit) for unit in spread]
    mean = fmean(means)
    error = corrected_error(means, rho=correlation_of_splits([record for unit in spread for record in unit]) or 0.0)
    return f"{_number(mean, style)} ± {_number(error, '.2g' if key in _TITLES else style)}"


def correlation_of_splits(records: Sequence[Record]) -> float | None:
    """The correlation rho of two splits of one data set that their overlapping rows cause, n_test / (n_test + n_train).

    The numbers of rows are the mean over the records that have them. Without any, the data set's ``test_fraction``
    stands for rho. It is 0 for seeds of one split and for splits with one test set, and None where it is not known.

    Source: Nadeau & Bengio (2003), section 3.1.
    """
    if len({split_of(record) for record in records}) < 2 or one_test_set(records):
        return 0.0
    sizes = [record.get("num_rows") for record in records if record["status"] == "complete"]
    if sizes and all(sizes):
        ratio = fmean(size["test"] / size["train"] for size in sizes if size)
        return ratio / (1 + ratio)
    for record in records:
        options = (record.get("config") or {}).get("data")
        share = options.get("test_fraction") if isinstance(options, Mapping) else None
        if share is not None:
            return float(share)
    return None


def one_test_set(records: Sequence[Record]) -> bool:
    """Whether all records say that they were scored at the same targets."""
    found = {record.get("test_checksum") for record in records}
    return len(found) == 1 and None not in found


def meaning_of_error(unit: str, records: Sequence[Record]) -> dict[str, str]:
    """What ± means in a row of the table, by a name that sorts the sentences."""
    if unit.endswith("seeds"):
        return {"seeds": "the standard error of the mean over seeds"}
    averaged = ", seeds averaged within a split"
    if one_test_set(records):
        return {"one": f"the standard error of the mean over splits with one test set{averaged}"}
    if correlation_of_splits(records) is None:
        return {
            "plain": f"the plain standard error over splits{averaged}, which is too small where their rows overlap: these "
            "records do not have the numbers of rows that correct it"
        }
    return {
        "splits": "Nadeau and Bengio's (2003) corrected standard error of the mean over splits, whose rows overlap: "
        f"sqrt(1/J + n_test/n_train) times the standard deviation of J splits{averaged}"
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None if a run lacks the value, because a mean over some of the row's runs would mislead."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _worst(choose: Any, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.nan if any(map(math.isnan, known)) else choose(known)


def _gradients(record: Record) -> float | None:
    parts = [record["num_grads"].get(phase) for phase in ("warmup", "sample")]
    return None if None in parts else sum(parts) + record["num_grads"].get("warm_start", 0.0)


def _state(group: Sequence[Record], aggregate: bool) -> str:
    warnings = str(sum(len(record["warnings"]) for record in group))
    if missing := sum(len(record.get("not_assessed") or ()) for record in group):
        warnings += f" ({missing} not assessed)"
    if not aggregate and group[0]["status"] != "complete":
        return f"{group[0]['status']}: {shorten(group[0].get('reason') or 'no reason given')}; {warnings}"
    bad = [record["status"] for record in group if record["status"] != "complete"]
    counts = [f"{bad.count(status)} of {len(group)} {status}" for status in dict.fromkeys(bad)]
    return "; ".join([*counts, warnings])


def _number(value: float | None, style: str) -> str:
    return MISSING if value is None else f"{value:{style}}" if math.isfinite(value) else str(value)


def _seconds(value: float | None) -> str:
    return _number(value, ".0f" if value is not None and value >= 100 else ".1f")


def shorten(text: str) -> str:
    """The text on one line, cut at 110 characters."""
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _cell(text: str) -> str:
    return markdown(text)
