"""Trace and rank plots of functions of the draws, drawn by ArviZ."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.report.figures import BLACK, COLOURS, DASHES, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trace(functions: Mapping[str, np.ndarray], *, diverging: np.ndarray | None = None, title: str = "") -> "Figure":
    """Values of functions draw by draw, a panel each and a line for each chain, by ``arviz_plots.plot_trace``.

    Parameters
    ----------
    functions : mapping from title to array (C, S)
    diverging : bool array (C, S), optional
        Marks divergent draws at the foot of the panels.
    title : str
    """
    import arviz_plots as azp

    groups = _groups(functions)
    if diverging is not None:
        groups["sample_stats"] = {"diverging": np.asarray(diverging, bool)}
    with styled():
        found = azp.plot_trace(
            _tree(groups), backend="matplotlib", visuals={"trace": {"width": 0.6}, "title": _TITLE, "xlabel": False},
            **_panels(functions),
        )  # fmt: skip
        return _finished(found, "draw", "value", title)


def rank(functions: Mapping[str, np.ndarray], *, title: str = "") -> "Figure":
    """Ranks of each chain's draws among those of all chains, by ``arviz_plots.plot_rank``.

    Each line is the empirical distribution of a chain's relative ranks less the uniform one. Chains that sample one law give
    lines near 0. A point is marked where ArviZ's test of several chains, which allows for autocorrelation, finds a difference.
    Source: Säilynoja, Bürkner & Vehtari (2022); Vehtari et al. (2021).

    Parameters
    ----------
    functions, title
        As :func:`trace` takes them.

    Raises
    ------
    ConfigError
        If there is a single chain.
    """
    import arviz_plots as azp

    if len(next(iter(functions.values()))) < 2:
        raise ConfigError("rank: a single chain has no other to be ranked with: choose a run with several chains.")
    with styled():
        found = azp.plot_rank(
            _tree(_groups(functions)), backend="matplotlib",
            visuals={"title": _TITLE, "xlabel": False, "remove_axis": False},
            **_panels(functions),
        )  # fmt: skip
        return _finished(found, "relative rank", "share up to it, less it", title)


_TITLE = {"size": 8, "color": BLACK}


def _groups(functions: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    return {"posterior": {name: np.asarray(values, np.float64) for name, values in functions.items()}}


def _tree(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    import xarray as xr

    def dataset(values: Mapping[str, np.ndarray]) -> xr.Dataset:
        some = next(iter(values.values()))
        coords = {"chain": np.arange(some.shape[0]), "draw": np.arange(some.shape[1])}
        return xr.Dataset({name: (("chain", "draw"), one) for name, one in values.items()}, coords)

    return xr.DataTree.from_dict({group: dataset(values) for group, values in groups.items()})


def _panels(functions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Two panels in a row; chains differ in colour and in dashes."""
    height = -(-len(functions) // 2)
    return {
        "aes": {"color": ["chain"], "linestyle": ["chain"], "overlay": ["chain"]},
        "color": list(COLOURS),
        "linestyle": list(DASHES),
        "col_wrap": 2,
        "figure_kwargs": {"figsize": (3.5 * min(2, len(functions)) + 0.4, 1.75 * height + 0.9)},
    }


def _finished(found: Any, xlabel: str, ylabel: str, title: str) -> "Figure":
    figure = found.viz["figure"].item()
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2][: len(COLOURS)]
    for ax in figure.axes:
        ax.tick_params(labelsize=7)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    labels = [f"chain {place + 1}" for place in range(len(lines))]
    figure.legend(lines, labels, loc="outside right upper")
    return figure
