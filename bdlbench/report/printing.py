"""Tables of text in Markdown, LaTeX (package booktabs) and CSV, in which foreign text is escaped."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bdlbench.report.escaping import latex, markdown


class Number(NamedTuple):
    """A cell with a number: digits, its standard error in digits, and what stands after both.

    ``best`` prints the number in bold.
    """

    value: str
    error: str = ""
    after: str = ""
    best: bool = False


class Sheet(NamedTuple):
    """A table: its title, headings, rows of text or numbers, sentences below it, and l or r for each column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Number]]
    notes: Sequence[str]
    aligned: str


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Every table with its title as a heading and its notes as a list."""
    lines: list[str] = []
    for sheet in sheets:
        rule = "".join("---|" if side == "l" else "---:|" for side in sheet.aligned)
        lines += [f"### {markdown(sheet.title)}", "", f"| {' | '.join(map(markdown, sheet.columns))} |", f"|{rule}"]
        lines += [f"| {' | '.join(map(_in_markdown, row))} |" for row in sheet.rows]
        lines += ["", *(f"- {markdown(note)}" for note in sheet.notes), ""]
    return "\n".join(lines).strip() + "\n"


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Every table as a float with its title as the caption and its notes beneath. It needs the package booktabs."""
    lines: list[str] = []
    for sheet in sheets:
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{latex(sheet.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{sheet.aligned}}}", r"\toprule"]
        lines += [" & ".join(map(latex, sheet.columns)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_in_latex, row)) + r" \\" for row in sheet.rows]
        lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par\footnotesize {latex(note)}" for note in sheet.notes)]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A heading and rows, quoted where a value needs it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def _in_markdown(cell: str | Number) -> str:
    if isinstance(cell, str):
        return markdown(cell)
    text = f"{cell.value} ± {cell.error}" if cell.error else cell.value
    return (f"**{text}**" if cell.best else text) + (f" {markdown(cell.after)}" if cell.after else "")


def _in_latex(cell: str | Number) -> str:
    if isinstance(cell, str):
        return latex(cell)
    value = rf"\mathbf{{{cell.value}}}" if cell.best else cell.value
    text = rf"${value} \pm {cell.error}$" if cell.error else f"${value}$"
    return text + (f" {latex(cell.after)}" if cell.after else "")
