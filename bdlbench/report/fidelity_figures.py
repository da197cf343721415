"""Figures of fidelity: worth by method, the parts of a squared bias, and draws beside those of a reference."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdlbench.report.figures import BLACK, COLOURS, DASHES, GREEN, ORANGE, figure_of, given_or_new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bdlbench.evaluation.ledger import Ledger

KINDS = {"test": "o", "probe": "s"}


def worth(names: Sequence[str], blocks: Sequence[Mapping[str, Any]], *, title: str = "") -> "Figure":
    """Worth with its 95 % interval on the left, gradients per exact draw on the right, one line for each run.

    Worth at test points is a disc, at probe points a square. A vertical tick shows how many draws the run has, and the
    dashed line how many the reference has: worth above it cannot be measured.

    Parameters
    ----------
    names : sequence of str
        K runs, drawn from top to bottom.
    blocks : sequence of mappings
        The entry ``fidelity`` of each record, all of one reference.
    title : str
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    kinds = [kind for kind in KINDS if any(kind in block for block in blocks)]
    ceiling = blocks[0][kinds[0]]["num_reference"]
    with styled():
        size = (7.4, 1.3 + 0.4 * len(names))
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
        for index, kind in enumerate(kinds):
            style: Any = {"color": COLOURS[index], "marker": KINDS[kind], "ms": 4.5, "ls": ""}
            rows = [row for row, block in enumerate(blocks) if kind in block]
            found = [blocks[row][kind] for row in rows]
            at = np.array(rows) + 0.16 * (2 * index - 1) * (len(kinds) > 1)
            value, low, high = (np.array([one[f"worth{end}"] for one in found]) for end in ("", "_low", "_high"))
            beside = np.maximum([value - low, high - value], 0.0)
            left.errorbar(value, at, xerr=beside, elinewidth=1.2, capsize=2, label=f"at {kind} points", **style)
            right.plot([one["gradients_per_exact_draw"] for one in found], at, **style)
        draws = [block[next(kind for kind in kinds if kind in block)]["num_draws"] for block in blocks]
        left.plot(draws, range(len(names)), ls="", marker="|", ms=14, mew=1.4, color=BLACK, label="draws of the run")
        left.axvline(ceiling, color="0.4", lw=1.0, ls="--", zorder=0, label=f"draws of the reference: {ceiling:,}")
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        for ax, label in ((left, "worth (exact draws)"), (right, "gradients an exact draw")):
            ax.set(xscale="log", xlabel=label)
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            ax.xaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            )
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.tick_params(axis="x", labelsize=7)
            ax.grid(alpha=0.25, lw=0.5)
        figure.suptitle(title, fontsize=10)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, columnspacing=1.2)
        return figure


def ledger(found: "Ledger", *, title: str = "") -> "Figure":
    """The squared bias of a run, what each intervention takes from it, and the rest.

    A bar begins where the one above it ends, so that all add up. A bar to the left of its start is bias that the
    intervention removes; one to the right is bias that it adds. The line in a bar is the 95 % interval of the squared bias
    that is left. Interventions that do not apply are named and have no bar.
    """
    entries = [entry for entry in found.entries if entry.bias is not None]
    names = [entry.name for entry in found.entries] + ["the rest"]
    with styled():
        ax = given_or_new(None, (7.0, 1.1 + 0.36 * len(names)))
        beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        first = entries[0].bias
        assert first is not None
        level = first.squared
        for row, entry in enumerate(found.entries):
            if entry.bias is None:
                text = "not applicable"
                ax.annotate(text, (max(level, 0.0), row), style="italic", color="0.4", **beside)
                continue
            start, end = (0.0, level) if entry.change is None else (level, level - entry.change)
            colour = COLOURS[0] if entry.change is None else GREEN if end < start else ORANGE
            hatch = "" if entry.change is None else "" if end < start else "//"
            ax.barh(row, end - start, left=start, height=0.62, color=colour, hatch=hatch, edgecolor="white", lw=0)
            low, high = entry.bias.squared_low, entry.bias.squared_high
            right = max(start, end)
            if np.isfinite([low, high]).all():
                ax.plot([low, high], [row, row], color=BLACK, lw=0.9, marker="|", ms=5)
                right = max(right, high)
            text = f"{end:.4f}" if entry.change is None else f"{-entry.change:+.4f}"
            ax.annotate(text, (right, row), **beside)
            if row:
                ax.vlines(start, row - 1 + 0.31, row + 0.31, color="0.5", lw=0.6)
            level = end
        last = len(names) - 1
        ax.barh(last, found.rest, height=0.62, color=COLOURS[1])
        ax.annotate(f"{found.rest:.4f}", (max(found.rest, 0.0), last), **beside)
        ax.axvline(0, color=BLACK, lw=0.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(last + 0.6, -0.6)
        ax.margins(x=0.16)
        ax.set(xlabel="squared bias at the test points (sd²)", title=title)
        figure = figure_of(ax)
        figure.tight_layout()
        return figure


def beside_reference(
    draws: Mapping[str, np.ndarray], reference: np.ndarray, labels: Sequence[str], *, xlabel: str = "", title: str = ""
) -> "Figure":
    """Empirical distributions of draws of runs and of a reference, a panel for each quantity.

    D² of ``bias`` and ``worth`` is twice the integral of the squared difference of two such lines (Szekely & Rizzo 2013),
    and W1 is the area between them.

    Parameters
    ----------
    draws : mapping from name to array (..., M)
    reference : array (..., M)
    labels : sequence of str
        M titles.
    xlabel : str
        The quantity with its unit.
    title : str
    """
    import matplotlib.pyplot as plt

    columns = min(4, len(labels))
    height = -(-len(labels) // columns)
    with styled():
        size = (2.0 * columns + 0.6, 1.6 * height + 0.8)
        figure, axes = plt.subplots(height, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
        for place, (ax, label) in enumerate(zip(axes.flat, labels, strict=False)):
            ax.ecdf(reference[..., place].ravel(), color="0.7", lw=3.0, label="reference")
            for index, (name, values) in enumerate(draws.items()):
                ax.ecdf(values[..., place].ravel(), color=COLOURS[index % 7], ls=DASHES[index % 7], lw=1.1, label=name)
            ax.set_title(label, fontsize=8)
            ax.tick_params(labelsize=7)
            ax.locator_params(axis="x", nbins=4)
        for ax in axes.flat[len(labels) :]:
            ax.set_axis_off()
        figure.suptitle(title, fontsize=10)
        figure.supxlabel(xlabel, fontsize=9)
        figure.supylabel("share of draws up to it", fontsize=9)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
        return figure
