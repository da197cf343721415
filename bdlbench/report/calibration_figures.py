"""Figures of calibration, drawn from arrays: reliability, probability integral transforms, and coverage."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bdlbench.metrics import calibration
from bdlbench.metrics.uniformity import envelope
from bdlbench.report.figures import BLACK, COLOURS, DASHES, MARKERS, figure_of, given_or_new, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability(
    runs: Mapping[str, tuple[Any, Any]], *, num_bins: int = 10, title: str = "", ax: "Axes | None" = None
) -> "Figure":
    """Share of right predictions against their probability, in bins of equal mass, with 95 % binomial intervals.

    The intervals are Wilson's (1927; scipy), of each bin alone. A calibrated classifier lies on the diagonal.

    Parameters
    ----------
    runs : mapping from name to (y, probs)
        Labels (n,) and predictive probabilities (n, K).
    num_bins : int
        See :func:`bdlbench.metrics.calibration.reliability`.
    title : str
    ax : Axes, optional
        The axes to draw into. None makes a new figure.
    """
    from scipy.stats import binomtest

    with styled():
        ax = given_or_new(ax, (4.6, 4.4))
        least = 1.0
        for place, (name, (y, probs)) in enumerate(runs.items()):
            confidence, accuracy, num = calibration.reliability(y, probs, num_bins=num_bins)
            right = np.rint(accuracy * num).astype(int)
            ends = [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(right, num, strict=True)]
            low, high = np.array(ends).T
            beside = np.maximum([accuracy - low, high - accuracy], 0.0)  # rounding can leave -1e-17
            ax.errorbar(
                confidence, accuracy, yerr=beside, color=COLOURS[place % 7], ls=DASHES[place % 7],
                marker=MARKERS[place % 7], ms=4, lw=0.9, elinewidth=0.8, capsize=2, label=name,
            )  # fmt: skip
            least = min(least, float(low.min()), float(confidence.min()))
        start = max(0.0, least - 0.03)
        ax.plot([start, 1], [start, 1], color="0.5", lw=0.8, ls=(0, (4, 3)), zorder=0, label="calibrated")
        ax.set(
            xlim=(start, 1.02), ylim=(start, 1.02), xlabel="probability of the predicted class, mean of a bin",
            ylabel="share of right predictions", title=title,
        )  # fmt: skip
        ax.set_aspect("equal")
        _legend_below(ax)
        return figure_of(ax)


def ecdf_differences(
    panels: Mapping[str, Mapping[str, np.ndarray]], *, level: float, xlabel: str, ylabel: str, inside: str
) -> "Figure":
    """For each panel the empirical distribution of u less the uniform one, with its simultaneous envelope.

    A uniform sample leaves the envelope anywhere with a probability of ``level`` (Säilynoja, Bürkner & Vehtari 2022).

    Parameters
    ----------
    panels : mapping from title to mapping from name to array
        The u, in [0, 1]. The arrays of a panel have the same length.
    level : float
    xlabel, ylabel : str
    inside : str
        What the legend calls the envelope.
    """
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    columns = min(4, len(panels))
    height = -(-len(panels) // columns)
    size = (2.1 * columns + (0.6 if columns > 1 else 1.8), 1.75 * height + 0.8)
    with styled():
        figure, axes = plt.subplots(
            height, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for ax, (title, panel) in zip(axes.flat, panels.items(), strict=False):
            z, low, high = envelope(len(next(iter(panel.values()))), level)
            ax.fill_between(z, low - z, high - z, color="0.88", lw=0, step="mid", label=inside)
            for name, u in panel.items():
                place = names.index(name)
                share = np.searchsorted(np.sort(u), z, side="right") / len(u)
                ax.plot(z, share - z, color=COLOURS[place % 7], ls=DASHES[place % 7], lw=1.1, label=name)
            ax.set_title(title)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        figure.supxlabel(xlabel, fontsize=9)
        figure.supylabel(ylabel, fontsize=9)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, columns + 1))
        return figure


def pit(runs: Mapping[str, np.ndarray], *, level: float = 0.05) -> "Figure":
    """For each run the distribution of its probability integral transforms less the uniform one; see :func:`ecdf_differences`.

    A line that rises through the middle says that the predictions are too wide, one that falls that they are too narrow.

    Parameters
    ----------
    runs : mapping from name to array (n,)
        u_i = P(Y <= y_i) under the predictive distribution.
    level : float
        Of each panel.
    """
    return ecdf_differences(
        {name: {"test rows": u} for name, u in runs.items()}, level=level,
        xlabel="PIT: P(Y ≤ y) of the observed y", ylabel="share of rows up to u, less u",
        inside=f"calibrated, {1 - level:.0%}",
    )  # fmt: skip


def coverage(
    runs: Mapping[str, np.ndarray], *, level: float = 0.05, title: str = "", ax: "Axes | None" = None
) -> "Figure":
    """Coverage of central prediction intervals against their nominal level, with a simultaneous envelope.

    y_i lies in the central interval of level p exactly if w_i = 2 |u_i - 1/2| <= p, so that the curve is the empirical
    distribution of w, which is uniform if u is. The envelope is that of :func:`ecdf_differences`.

    Parameters
    ----------
    runs : mapping from name to array (n,)
        As :func:`pit` takes them.
    level : float
    title : str
    ax : Axes, optional
        The axes to draw into. None makes a new figure.
    """
    nominal = np.arange(1, 100) / 100
    with styled():
        ax = given_or_new(ax, (4.6, 4.4))
        for num in dict.fromkeys(len(u) for u in runs.values()):
            z, low, high = envelope(num, level)
            ax.fill_between(
                100 * z, 100 * low, 100 * high, color="0.88", lw=0, step="mid",
                label=f"calibrated, {1 - level:.0%}, {num:,} rows",
            )  # fmt: skip
        ax.plot([0, 100], [0, 100], color=BLACK, lw=0.6)
        for place, (name, u) in enumerate(runs.items()):
            share = [calibration.coverage(u, level=one) for one in nominal.tolist()]
            ax.plot(100 * nominal, 100 * np.array(share), color=COLOURS[place % 7], ls=DASHES[place % 7], label=name)
        ax.set(
            xlim=(0, 100), ylim=(0, 100), xlabel="nominal level of the central interval (%)",
            ylabel="test rows inside (%)", title=title,
        )  # fmt: skip
        ax.set_aspect("equal")
        _legend_below(ax)
        return figure_of(ax)


def _legend_below(ax: "Axes") -> None:
    """A legend that covers no data, for an axes with a label below."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
