"""Report of simulation-based calibration: one table and one picture with all methods."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bdlbench.evaluation.calibration import (
    BETTER_THAN_EXACT,
    NUM_DRAWS,
    Calibration,
    Line,
    judge,
    level,
    smallest_found,
    twins,
)
from bdlbench.report.printing import as_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

COLUMNS = (
    "method", "quantity", "num_datasets", "num_draws", "p_value", "level", "is_uniform", "shift", "shift_se",
    "log_inflation", "log_inflation_se", "nll_minus_exact", "nll_minus_exact_se", "num_grads", "seconds",
    "compile_seconds", "ess_median", "num_failed",
)  # fmt: skip


def report(fitted: Mapping[str, Calibration], *, exact: str, alpha: float, table: str, figure: str) -> list[str]:
    """Print the table, write it with all quantities as CSV, and draw the picture.

    Parameters
    ----------
    fitted : mapping from method to Calibration
    exact : str
        The method whose draws are exact.
    alpha : float
    table, figure : str
        Paths of the CSV file and the PNG file.

    Returns
    -------
    list of str
        One sentence for each method that is better than exact draws by more than chance, which is a fault.
    """
    from rich.console import Console

    from bdlbench.report.figures import save

    lines, console = judge(fitted, alpha), Console()
    console.print(ranks_table(fitted, lines))
    console.print(prices_table(fitted, exact=exact))
    for note in notes(fitted, alpha):
        console.print(note)
    Path(table).parent.mkdir(parents=True, exist_ok=True)
    Path(table).write_text(as_csv(COLUMNS, rows(fitted, lines, exact=exact, alpha=alpha)), encoding="utf-8")
    console.print(f"table: {table}")
    console.print(f"picture: {save(draw(fitted, alpha), figure)}")
    compared = {name: twins(one, fitted[exact]) for name, one in fitted.items()}
    return [
        f"{name} predicts better than exact draws by {-found.z:.1f} standard errors, which no method does on average: "
        f"look for a fault in {name}, in {exact} or in the scores."
        for name, found in compared.items()
        if found.is_fault
    ]


def rows(
    fitted: Mapping[str, Calibration], lines: Sequence[Line], *, exact: str, alpha: float
) -> list[tuple[object, ...]]:
    """The rows of the CSV table, one for each method and quantity; see ``COLUMNS``."""
    each = level(fitted, alpha)
    out: list[tuple[object, ...]] = []
    for line in lines:
        one, found = fitted[line.method], line.deviation
        compared = twins(one, fitted[exact])
        out.append((
            line.method, line.quantity, len(one.failed), one.num_draws, line.p_value, each, line.is_uniform, found.shift,
            found.shift_se, found.log_inflation, found.log_inflation_se, compared.difference, compared.se, one.num_grads,
            one.seconds, one.compile_seconds, _median(one.ess), int(one.failed.sum()),
        ))  # fmt: skip
    return out


def ranks_table(fitted: Mapping[str, Calibration], lines: Sequence[Line]) -> "Table":
    """One row for each method: in how many quantities the ranks are uniform, and what is wrong in the worst of them.

    The worst quantity is the one with the smallest p-value.
    """
    num = len(next(iter(fitted.values())).failed)
    out = _table(f"Ranks in {num} data sets", "method", "uniform in", "worst quantity", "p", "sd / exact", "shift [sd]")
    for name in fitted:
        own = [line for line in lines if line.method == name]
        worst = min(own, key=lambda line: line.p_value)
        found, ratio = worst.deviation, math.exp(worst.deviation.log_inflation)
        out.add_row(
            name, f"{sum(line.is_uniform for line in own)} of {len(own)}", worst.quantity, f"{worst.p_value:.1g}",
            f"{ratio:.2f} ± {ratio * found.log_inflation_se:.2f}", f"{found.shift:.2f} ± {found.shift_se:.2f}",
        )  # fmt: skip
    return out


def prices_table(fitted: Mapping[str, Calibration], *, exact: str) -> "Table":
    """One row for each method: its predictions beside those of exact draws, and its price."""
    out = _table(
        "Predictions and price", "method", "NLL - exact", "z", "gradients a fit", "seconds in all", "ESS", "failed"
    )
    for name, one in fitted.items():
        compared = twins(one, fitted[exact])
        predicted = ("exact", "") if name == exact else (
            f"{compared.difference:.4f} ± {compared.se:.4f}", f"{compared.z:.1f}",
        )  # fmt: skip
        out.add_row(
            name, *predicted, f"{one.num_grads:,.0f}", f"{one.seconds:.1f}", f"{_median(one.ess):.0f} of {one.num_draws}",
            str(int(one.failed.sum())),
        )  # fmt: skip
    return out


def _table(title: str, *heads: str) -> "Table":
    from rich import box
    from rich.table import Table

    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title, title_justify="left")
    for head in heads:
        out.add_column(head, justify="left" if head in ("method", "worst quantity") else "right")
    return out


def notes(fitted: Mapping[str, Calibration], alpha: float) -> list[str]:
    """What the test can find, and which methods' draws are not independent."""
    each, num = level(fitted, alpha), len(next(iter(fitted.values())).failed)
    out = [
        f"Each of the {round(alpha / each)} tests has the level {each:.2g}, so that exact methods alone would fail anywhere "
        f"with a probability of {alpha:g} at most. In {num} data sets a test finds an sd that is {_found(num, each, 0.9)} "
        "with probability .9."
    ]
    slow = [name for name, one in fitted.items() if _median(one.ess) < one.num_draws / 2]
    if slow:
        out.append(
            f"The ranked draws of {', '.join(slow)} depend on each other: their ranks show too few steps as well as bias. "
            "Take more steps between draws."
        )
    few = [f"{name} ({one.num_draws})" for name, one in fitted.items() if one.num_draws < NUM_DRAWS]
    if few:
        out.append(f"Fewer than {NUM_DRAWS} draws are ranked of {', '.join(few)}.")
    out.append(f"NLL - exact below {BETTER_THAN_EXACT:g} standard errors would be a fault of this program.")
    return out


def _found(num: int, each: float, probability: float) -> str:
    ratio = smallest_found(num, each, probability)
    return f"{ratio:.2f} times too large" if np.isfinite(ratio) else "more than 16 times too large"


def draw(fitted: Mapping[str, Calibration], alpha: float) -> "Figure":
    """For each method the empirical distribution of u less the uniform one, for each quantity, with the envelope.

    Draws that are too wide give a rising line through the middle, draws that are too narrow a falling one, and a shift a
    hump to one side (Säilynoja, Bürkner & Vehtari 2022).
    """
    from bdlbench.report.calibration_figures import ecdf_differences

    return ecdf_differences(
        {name: one.u for name, one in fitted.items()}, level=level(fitted, alpha),
        xlabel="place u of the truth among the draws", ylabel="share of data sets up to u, less u", inside="exact draws",
    )  # fmt: skip


def _median(ess: np.ndarray) -> float:
    known = ess[np.isfinite(ess)]
    return float(np.median(known)) if len(known) else math.nan
