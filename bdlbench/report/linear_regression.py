"""Report of linear regression, y = w x + b + sigma e, beside its exact posterior."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdlbench.evaluation.linear_regression import Moments, exact_posterior
from bdlbench.store import Store
from bdlbench.types import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Record = Mapping[str, Any]
SITES = {"w": "network.output.kernel", "b": "network.output.bias", "sigma": "sigma"}


def report(records: Sequence[Record], *, figure: str) -> None:
    """Print the posterior moments of each run beside the exact ones, and save a figure of data, bands and draws.

    Parameters
    ----------
    records : sequence of mappings
        Records of runs of ``experiment=linear_regression``.
    figure : str
        Path of the PNG file.
    """
    from rich.console import Console

    from bdlbench.report.figures import save

    done = [record for record in records if record["status"] == "complete"]
    grids: dict[str, list[Record]] = {}
    for record in done:
        grids.setdefault(_grid(record), []).append(record)
    console = Console()
    for grid, group in grids.items():
        console.print(table(group, title=f"x on {grid}"))
    for record in records:
        if record not in done:
            console.print(f"{record['id']}: {record['status']}: {record.get('reason')}")
    if done:
        path = save(draw(grids), Path(figure))
        console.print(f"picture: {path}")


def table(records: Sequence[Record], *, title: str) -> "Table":
    """Posterior mean ± sd of w, b and sigma, with one row for each run and one for the exact posterior.

    Each sd is also shown divided by the exact sd. All records must be runs on the same data set.
    """
    from rich import box
    from rich.table import Table

    exact = exact_of(records[0])
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title, title_justify="left")
    out.add_column("method")  # only this column may wrap, since the others just fit into 80 characters
    for name in SITES:
        out.add_column(f"{name}: mean ± sd\n(sd / exact)", justify="right", no_wrap=True)
    rows = [(_name(record), _moments(_sites(record))) for record in records]
    for name, moments in [*rows, ("exact", exact)]:
        cells = [name]
        for i in range(len(SITES)):
            cells.append(f"{moments.mean[i]:.3f} ± {moments.sd[i]:.4f} ({moments.sd[i] / exact.sd[i]:.2f})")
        out.add_row(*cells)
    return out


def exact_of(record: Record) -> Moments:
    """The exact posterior moments for the data and priors of a run.

    Raises
    ------
    ConfigError
        If the exact posterior of the run's model is not known here.
    """
    config = record["config"]
    noise = config["likelihood"].get("noise") or {}
    if (
        config["network"].get("depth") != 0
        or not config["prior"]["_target_"].endswith(".normal")
        or not noise.get("_target_", "").endswith(".Uniform")
        or config["temperature"] != 1
    ):
        raise ConfigError(
            "report: the closed form is for network=linear, prior=normal, likelihood=gaussian_uniform_noise at "
            "temperature=1; choose another report for other models."
        )
    x, y = _data(record)
    scales = {name: config["prior"][name] for name in ("weight_scale", "bias_scale")}
    return exact_posterior(x, y, **scales, low=noise["low"], high=noise["high"])


def draw(grids: Mapping[str, Sequence[Record]]) -> "Figure":
    """A figure with a column for each grid: the data, predictive means and 95 % bands above, draws of (w, b) below."""
    import matplotlib.pyplot as plt

    from bdlbench.report import figures

    with figures.styled():
        figure, axes = plt.subplots(2, len(grids), figsize=(4.2 * len(grids), 6.4), squeeze=False)
        for column, (grid, records) in enumerate(grids.items()):
            top, below = axes[:, column]
            top.set(title=f"data and predictions, x on {grid}", xlabel="x", ylabel="y")
            below.set(title="posterior of slope and intercept", xlabel="slope w", ylabel="intercept b")
            exact = exact_of(records[0])
            _bands(top, records)
            _draws(below, records, exact)
        axes[0, 0].legend(loc="upper left")
        axes[1, -1].legend(loc="upper right", markerscale=3)
        figure.tight_layout()
        return figure


def _bands(ax: "Axes", records: Sequence[Record]) -> None:
    from bdlbench.report import figures

    x, y = _data(records[0])
    line = np.linspace(x.min(), x.max(), 101)
    rng = np.random.default_rng(0)
    for place, record in enumerate(records):
        w, b, sigma = _sites(record).T[..., None]
        f = w * line + b
        low, high = np.quantile(f + sigma * rng.standard_normal(f.shape), (0.025, 0.975), axis=0)
        colour, dash = figures.COLOURS[place], figures.DASHES[place]
        name = _name(record)
        ax.plot(line, f.mean(0), color=colour, ls=dash, lw=1.3, label=f"{name}: mean")
        if place == 0:
            ax.fill_between(line, low, high, color=colour, alpha=0.2, lw=0, label=f"{name}: 95 % of y")
        else:
            ax.plot(line, low, color=colour, lw=0.8, ls=dash, label=f"{name}: 95 % of y")
            ax.plot(line, high, color=colour, lw=0.8, ls=dash)
    ax.plot(x, y, ls="", marker="o", ms=2.2, mfc="black", mec="white", mew=0.3, label="data")


def _draws(ax: "Axes", records: Sequence[Record], exact: Moments) -> None:
    from bdlbench.report import figures

    for place, record in reversed(list(enumerate(records))):
        sites = _sites(record)
        some = sites[np.linspace(0, len(sites) - 1, min(1000, len(sites))).astype(int)]
        ax.plot(some[:, 0], some[:, 1], ls="", marker=figures.MARKERS[place], ms=1.6, mew=0, alpha=0.6,
                color=figures.COLOURS[place], label=_name(record))  # fmt: skip
    angle = np.linspace(0, 2 * np.pi, 200)
    # 95 % of a Gaussian in two dimensions lie within a squared Mahalanobis distance of -2 log 0.05 from its mean.
    circle = np.sqrt(-2 * np.log(0.05)) * np.stack([np.cos(angle), np.sin(angle)])
    ellipse = exact.mean[:2, None] + np.linalg.cholesky(exact.covariance[:2, :2]) @ circle
    ax.plot(*ellipse, color="black", lw=1.2, label="exact, 95 %")


def _data(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """The training rows x (n,) and y (n,) of the run."""
    from bdlbench.data.generated import linear_regression

    options = {name: value for name, value in record["config"]["data"].items() if not name.startswith("_")}
    train = linear_regression(**options).train
    return train.x.astype(np.float64).reshape(-1), train.y.astype(np.float64)


def _sites(record: Record) -> np.ndarray:
    """Draws (S, 3) of w, b and sigma from all chains."""
    with Store(record["config"]["store"]["path"]).posterior(record["id"]) as tree:
        posterior = tree["posterior"]
        return np.stack([posterior[name].to_numpy().astype(np.float64).reshape(-1) for name in SITES.values()], 1)


def _moments(sites: np.ndarray) -> Moments:
    return Moments(sites.mean(0), np.cov(sites.T))


def _grid(record: Record) -> str:
    data = record["config"]["data"]
    return f"[{data['center'] - data['half_width']:g}, {data['center'] + data['half_width']:g}]"


def _name(record: Record) -> str:
    """The name of the method, and for an optimiser also its number of steps."""
    schedule = record["config"]["inference"]["schedule"]
    name = str(record["labels"]["inference"]).upper()
    return name if schedule["thinning"] else f"{name}, {schedule['num_warmup']:,} steps"
