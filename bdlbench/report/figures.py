"""Figures of stored runs, which matplotlib draws from arrays. They are readable at the width of a README.

A plotting function returns its figure. It draws into the axes ``ax`` if they are given, else into a new figure. The
colours are those of Okabe and Ito (2008), which readers with the common kinds of colour blindness can distinguish.
Lines also differ in dashes or markers.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 120,
    "svg.hashsalt": "bdlbench",
}


def predictive_bands(
    x: Any,
    prediction: Mapping[str, np.ndarray],
    *,
    data: tuple[Any, Any] | None = None,
    truth: Any = None,
    title: str = "",
    xlabel: str = "x",
    ylabel: str = "y",
    ax: "Axes | None" = None,
) -> "Figure":
    """Predictive mean along one input, with 50 % and 95 % bands of the function and the 95 % band of y.

    The bands of the function are filled; that of y is drawn as two dashed lines.

    Parameters
    ----------
    x : array (n,)
        Inputs in increasing order, in original units.
    prediction : mapping
        What :func:`bdlbench.evaluation.predictive.predictive` returns, with 0.025, 0.25, 0.75 and 0.975 among its
        levels. The band of y, which includes the noise, is drawn only if ``quantiles`` is given.
    data : (x, y), optional
        Training rows.
    truth : array (n,), optional
        Values of the function that generated the data, at x.
    title, xlabel, ylabel : str
        The labels of the axes name the quantity and its unit.
    ax : Axes, optional
        The axes to draw into. None makes a new figure.

    Raises
    ------
    ValueError
        If a level is missing from the quantiles.
    """
    with styled():
        ax = given_or_new(ax, (6.0, 3.6))
        x = np.asarray(x, np.float64).reshape(-1)
        at = {level: _level(prediction, level) for level in (0.025, 0.25, 0.75, 0.975)}
        mean = prediction["mean_quantiles"]
        ax.fill_between(x, mean[at[0.025]], mean[at[0.975]], color=SKY, alpha=0.35, lw=0, label="95 % of f(x)")
        ax.fill_between(x, mean[at[0.25]], mean[at[0.75]], color=BLUE, alpha=0.35, lw=0, label="50 % of f(x)")
        if "quantiles" in prediction:
            whole = prediction["quantiles"]
            ax.plot(x, whole[at[0.025]], color=BLUE, lw=0.8, ls=(0, (4, 2)), label="95 % of y, with noise")
            ax.plot(x, whole[at[0.975]], color=BLUE, lw=0.8, ls=(0, (4, 2)))
        ax.plot(x, prediction["mean"].mean(0), color=BLUE, lw=1.6, label="predictive mean")
        if truth is not None:
            ax.plot(x, np.asarray(truth).reshape(-1), color=VERMILLION, lw=1.1, ls=":", label="truth")
        if data is not None:
            rows = [np.asarray(part).reshape(-1) for part in data]
            ax.plot(*rows, ls="", marker="o", ms=2.6, mfc=BLACK, mec="white", mew=0.3, alpha=0.8, label="training data")
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
        ax.margins(x=0)
        return figure_of(ax)


def compare_bands(
    x: Any,
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    *,
    data: tuple[Any, Any] | None = None,
    truth: Any = None,
    xlabel: str = "x",
    ylabel: str = "y",
    ylim: tuple[float, float] | None = None,
) -> "Figure":
    """Draw :func:`predictive_bands` of several methods side by side, on the same scale and with one legend below.

    ``predictions`` maps the title of each panel to its prediction. ``ylim`` limits the y axis of all panels. The other
    parameters are those of :func:`predictive_bands`.
    """
    import matplotlib.pyplot as plt

    with styled():
        size = (max(4.0, 2.9 * len(predictions)), 3.3)
        figure, axes = plt.subplots(1, len(predictions), figsize=size, sharex=True, sharey=True, squeeze=False)
        for place, (title, prediction) in enumerate(predictions.items()):
            predictive_bands(
                x, prediction, data=data, truth=truth, title=title, xlabel=xlabel, ylabel="" if place else ylabel,
                ax=axes[0, place],
            )  # fmt: skip
        if ylim is not None:
            axes[0, 0].set_ylim(ylim)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), columnspacing=1.2, handlelength=1.6)
        figure.tight_layout(rect=(0, 0.08, 1, 1))
        return figure


def curves(
    runs: Mapping[str, Any],
    *,
    metric: str = "lppd",
    label: str | None = None,
    price: str = "num_grads",
    ylim: tuple[float, float] | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """A score of the posterior so far, against the gradients or seconds spent on it on a logarithmic scale.

    Parameters
    ----------
    runs : mapping of str to DataFrame
        For the name of each method, what :meth:`bdlbench.store.Store.curve` returns.
    metric : str
        A column of the curves.
    label : str, optional
        Label of the vertical axis: the score and its unit. None takes ``metric``.
    price : "num_grads" or "seconds"
        Gradient evaluations on the full data with warm-up, or seconds without compilation.
    ylim : (low, high), optional
        Range of the score that is shown. The first steps of an optimiser can be far below the range of interest.
    ax : Axes, optional
        The axes to draw into. None makes a new figure.
    """
    with styled():
        ax = given_or_new(ax, (6.0, 3.6))
        for place, (name, curve) in enumerate(runs.items()):
            style: dict[str, Any] = {"color": COLOURS[place % 7], "ls": DASHES[place % 7], "marker": MARKERS[place % 7]}
            ax.plot(curve[price], curve[metric], ms=3.5, lw=1.3, label=name, **style)
        ax.set_xscale("log")
        units = {
            "num_grads": "gradient evaluations on the full data, warm-up included",
            "seconds": "seconds, compilation apart",
        }
        ax.set(xlabel=units[price], ylabel=metric if label is None else label)
        if ylim is not None:
            ax.set_ylim(ylim)
        ax.grid(alpha=0.25, lw=0.5)
        ax.legend()
        return figure_of(ax)


def frontier(
    bands: Mapping[tuple[str, str], Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    title: str = "",
    finest: Mapping[str, float] | None = None,
) -> "Figure":
    """Bias, 1/worth and NLL of several methods against gradients and seconds, with 95 % bands over seeds.

    Parameters
    ----------
    bands : mapping
        By metric (``bias``, ``1/worth``, ``nll``) and price (``num_grads``, ``seconds``): for each method prices (G,) and
        mean, low and high end (3, G), as :func:`bdlbench.evaluation.frontiers.band` returns them.
    title : str
    finest : mapping, optional
        For each metric the value below which the reference says nothing, drawn as a grey area.
    """
    import matplotlib.pyplot as plt

    labels = {
        "bias": "bias (sd)",
        "1/worth": "1/worth (exact draws$^{-1}$)",
        "nll": "NLL (nats a point)",
        "num_grads": "gradient evaluations on the full data",
        "seconds": "seconds, compilation apart",
    }
    metrics, prices = (list(dict.fromkeys(key[axis] for key in bands)) for axis in (0, 1))
    names = list(dict.fromkeys(name for methods in bands.values() for name in methods))
    with styled():
        size = (3.6 * len(prices), 2.5 * len(metrics) + 0.5)
        figure, axes = plt.subplots(len(metrics), len(prices), figsize=size, squeeze=False, sharex="col", sharey="row")
        for (row, metric), (column, price) in itertools.product(enumerate(metrics), enumerate(prices)):
            ax = axes[row, column]
            for name, (paid, (mean, low, high)) in bands.get((metric, price), {}).items():
                place = names.index(name)
                ax.plot(paid, mean, color=COLOURS[place % 7], ls=DASHES[place % 7], lw=1.3, label=name)
                if paid.size and np.isfinite(low).all():
                    ax.fill_between(paid, low, high, color=COLOURS[place % 7], alpha=0.2, lw=0)
            ax.set_xscale("log")
            least = (finest or {}).get(metric, -np.inf)
            if least > 0:
                ax.set_yscale("log", nonpositive="clip")
                ax.axhspan(least / 3, least, color="0.85", lw=0, zorder=0)
                ax.set_ylim(bottom=least / 3)
            ax.grid(alpha=0.25, lw=0.5)
            ax.set(xlabel=labels[price] if row == len(metrics) - 1 else "", ylabel="" if column else labels[metric])
        found = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.suptitle(title, fontsize=10)
        if found:
            figure.legend(found.values(), found.keys(), loc="lower center", ncols=min(4, len(found)))
        figure.tight_layout(rect=(0, 0.07, 1, 1))
        return figure


def rank_diagram(
    names: Sequence[str],
    expected: Any,
    interval: Any,
    groups: Sequence[Sequence[int]],
    *,
    title: str = "",
    by_data: Any = None,
) -> "Figure":
    """Expected ranks on an axis, as in a critical-difference diagram (Demsar 2006), with their posterior intervals.

    Each method is led from its expected rank to its name, the better half on the left. A thick bar joins methods that are
    not told apart. Below the axis each method has the 95 % interval of its rank, and a small circle for its expected rank
    on each data set.

    Parameters
    ----------
    names : sequence of str
        K methods.
    expected : array (K,)
        Expected ranks; 1 is the best and stands on the left.
    interval : array (2, K)
        Ends of the intervals.
    groups : sequence of sequences of int
        Methods that a bar joins, by index.
    title : str
    by_data : array (I, K), optional
        Expected ranks on each data set.
    """
    expected, interval = np.asarray(expected, np.float64), np.asarray(interval, np.float64)
    num, order = len(names), np.argsort(expected, kind="stable").tolist()
    half = (num + 1) // 2
    with styled():
        ax = given_or_new(None, (7.0, 1.2 + 0.26 * (half + len(groups) + num)))
        top = len(groups) + 1.0
        ax.set(xlim=(0.3 - 0.3 * num, num + 0.7 + 0.3 * num), ylim=(-num - 0.5, top + half + 0.5))
        ax.hlines(0, 1, num, color=BLACK, lw=1.2)
        for rank in range(1, num + 1):
            ax.vlines(rank, -0.15, 0.15, color=BLACK, lw=1.0)
            ax.annotate(
                str(rank), (rank, 0), xytext=(0, -4), textcoords="offset points", ha="center", va="top", fontsize=8
            )
        for place, k in enumerate(order):
            left = place < half
            height = top + (place if left else num - 1 - place)
            end = 0.9 if left else num + 0.1
            ax.plot([expected[k], expected[k], end], [0, height, height], color=BLACK, lw=0.8)
            ax.annotate(
                f"{names[k]} ({expected[k]:.1f})", (end, height), xytext=(-3 if left else 3, 0),
                textcoords="offset points", ha="right" if left else "left", va="center", fontsize=8,
            )  # fmt: skip
            row = -1.2 - place
            ax.hlines(row, *interval[:, k], color=BLUE, lw=2.0)
            ax.plot(expected[k], row, marker="o", ms=4, color=BLUE)
            if by_data is not None:
                ax.plot(
                    np.asarray(by_data)[:, k],
                    np.full(len(by_data), row),
                    ls="",
                    marker="o",
                    ms=3,
                    mfc="none",
                    mec=VERMILLION,
                )
            ax.annotate(names[k], (num + 0.3, row), ha="left", va="center", fontsize=8)
        for level, group in enumerate(groups, start=1):
            ends = expected[list(group)]
            ax.hlines(0.9 * level, ends.min() - 0.04, ends.max() + 0.04, color=VERMILLION, lw=3.0)
        meaning = "thick bars: not told apart; lines: 95 % interval of the rank"
        meaning += "; circles: data sets" if by_data is not None else ""
        ax.annotate(meaning, (0.5, 0), xycoords="axes fraction", ha="center", va="top", fontsize=7)
        ax.set_axis_off()
        ax.set_title(title)
        return figure_of(ax)


def convergence_bars(records: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> "Figure":
    """Bars of the smallest bulk ESS and the largest R-hat over test points, in function space, for several runs.

    Parameters
    ----------
    records : sequence of mappings
        Records as :meth:`bdlbench.store.Store.record` returns them. A method whose draws are not a Markov chain has
        neither value.
    names : sequence of str, optional
        One name for each record. None takes the labels of the inference methods.
    """
    import matplotlib.pyplot as plt

    names = [str(r["labels"].get("inference")) for r in records] if names is None else list(names)
    ess = [r["metrics"].get("ess_bulk_min") for r in records]
    rhat = [r["metrics"].get("rhat_max") for r in records]
    with styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 0.9 + 0.42 * len(names)), sharey=True)
        _bars(left, names, ess, 1.0, ".0f")
        left.set(xscale="log", xlabel="smallest bulk ESS over test points")
        needed = {place: 100 * _num_chains(r) for place, r in enumerate(records) if ess[place] is not None}
        for place, value in needed.items():
            left.vlines(value, place - 0.42, place + 0.42, color=BLACK, lw=1.2, ls="--")
        left.set_xlim(1, 4 * max([100, *(e for e in ess if e is not None), *needed.values()]))
        _bars(right, names, rhat, 1.0, ".3f")
        largest = max([1.02, *(r for r in rhat if r is not None and np.isfinite(r))])
        right.set(xlim=(1.0, 1 + 1.35 * (largest - 1)), xlabel="largest R-hat over test points")
        right.axvline(1.01, color=BLACK, lw=1.2, ls="--", zorder=0)
        left.set_title("dashed: 100 a chain", fontsize=8, loc="right")
        right.set_title("dashed: 1.01", fontsize=8, loc="right")
        left.invert_yaxis()
        figure.tight_layout()
        return figure


def png(figure: "Figure") -> bytes:
    """A small PNG without a date and without a version of the software, so that the same figure has the same bytes.

    It has 256 colours, which are enough for these figures and need a third of the bytes.
    """
    import io

    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, bbox_inches="tight", facecolor="white")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


def save(figure: "Figure", path: str | Path) -> Path:
    """Write the figure as :func:`png`, and return the path. The folder is made if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
    return path


def _bars(ax: "Axes", names: Sequence[str], values: Sequence[float | None], base: float, style: str) -> None:
    """Draw horizontal bars from ``base`` with their values beside them. A text stands where a run has no value."""
    beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    beside["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    for place, value in enumerate(values):
        if value is None or not np.isfinite(value):
            text = "no chain: none" if value is None else str(value)
            ax.annotate(text, (0, place), xycoords=("axes fraction", "data"), style="italic", **beside)
            continue
        ax.barh(place, value - base, left=base, height=0.6, color=SKY)
        ax.annotate(f"{value:{style}}", (value, place), **beside)
    ax.set_yticks(range(len(names)), names)


def _num_chains(record: Mapping[str, Any]) -> int:
    return int(record["config"]["inference"]["schedule"]["num_chains"])


def _level(prediction: Mapping[str, np.ndarray], level: float) -> int:
    found = np.flatnonzero(np.isclose(prediction["levels"], level))
    if not len(found):
        raise ValueError(f"the prediction has quantiles at {prediction['levels']}, but the figure needs {level}")
    return int(found[0])


def given_or_new(ax: "Axes | None", size: tuple[float, float]) -> "Axes":
    """The axes that were given, or those of a new figure of this size in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size)[1] if ax is None else ax


def figure_of(ax: "Axes") -> "Figure":
    """The figure to which axes belong."""
    figure = ax.get_figure()
    assert figure is not None
    return figure.get_figure(root=True) or figure  # type: ignore[return-value]


def styled() -> Any:
    """A context manager that sets the style of the figures of the project."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)
