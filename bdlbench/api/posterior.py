"""Fit a model to arrays; and the posterior, which predicts, gives its draws, is updated with more rows and is saved."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bdlbench.api import fitting, networks, partly
from bdlbench.api.options import refuse_kept, sorted_options
from bdlbench.api.prediction import Prediction
from bdlbench.api.problem import Parts, Rows, checked_precision, make_job, make_program, num_outputs
from bdlbench.api.serving import Server
from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.job import Job, check_job
from bdlbench.sampling.devices import settings
from bdlbench.sampling.position import Position
from bdlbench.types import Precision, Schedule

MOST_BYTES = 2**30
"""Largest pointwise log likelihood that :attr:`Posterior.data_tree` holds, in bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The rows, and the draws as they were sampled, from which a posterior in memory can be updated."""

    rows: Rows
    job: Job
    start: str
    position: Position | None = None
    draws: fitting.Draws | None = None
    progress: Any = None


def fit(
    network: Any = None,
    x: Any = None,
    y: Any = None,
    *,
    model: Callable[..., Any] | None = None,
    inference: Any = "nuts",
    prior: Any = None,
    likelihood: Any = None,
    temperature: float = 1.0,
    seed: int = 0,
    standardize: bool = True,
    progress: bool | Literal["auto", "lines", "off"] = True,
    precision: Any = "float32",
    bayesian: str | Callable[[str], bool] | None = None,
    store: Any = None,
    options: Any = None,
    **keywords: Any,
) -> "Posterior":
    r"""Sample or approximate the posterior of a model given rows.

    .. math:: p(\theta | x, y) \propto \Big(p(\theta) \prod_n p(y_n | x_n, \theta)\Big)^{1/T}

    Parameters
    ----------
    network : Flax module class, factory or instance (NNX or Linen), or a preset's name
        A class or factory is called with those of ``in_features``, ``out_features`` and ``rngs`` that it names, and
        each chain starts at weights of its own where the method starts at the network's initialisation. The chains of
        an NNX instance all start at its weights. None is the preset ``mlp``.
    x : array (n, ...), DataFrame, or nested dict, list or tuple of arrays with a leading row axis
    y : array (n,) of amounts or classes, or (n, K) for K targets with independent noise
        Floats are amounts; text and booleans are classes; for whole numbers ``likelihood`` says which.
    model : NumPyro function (x, y=None), instead of a network with prior and likelihood
    inference : str, mapping or factory
        A preset's name, its configuration as a mapping with ``_target_`` and ``schedule``, or a function
        ``(target, schedule) -> Method`` of your own.
    prior : str, mapping, Distribution, or function (name, shape) -> Distribution
        Over the network's weights; ``fan_in`` where None.
    likelihood : str, mapping, or function (task, num_outputs) -> Likelihood
        ``auto`` where None: Gaussian with learned noise for amounts, categorical for classes.
    temperature : float
        T; 1 is the Bayesian posterior.
    seed : int
    standardize : bool
        Standardise the columns of tables and matrices, and the target, by the training rows. Inputs and results of the
        posterior stay in your units, except :attr:`Posterior.params` and :attr:`Posterior.sites`.
    progress : bool
        Whether to show bars or lines of progress.
    precision : "float32" or "float64"
        Precision of the rows, the method, its draws and their predictions. It does not depend on ``jax_enable_x64`` in
        your process.
    bayesian : "last_layer", or a function of a weight's path (as ``output.kernel``), optional
        Which weights of the network get a posterior. The others are first fitted to the mode of the whole posterior by
        the preset ``map``, and then stay fixed. The options of this fit begin with ``rest.``, as in
        ``options={"rest.num_warmup": 500}``, and its cost is counted as ``rest``. None: all weights get a posterior.
    store : path or Store, optional
        Keep the run in this store, as a command does; its rows lie beside the store. The same fit is then found there
        and not repeated, and an interrupted fit continues. The parts of the model must be importable.
    options, keywords
        Options of the method and its schedule: ``num_samples=500``, ``step_size=1e-3``, ``batch_size=32``; deeper ones by
        their path, as in ``options={"before.0.schedule.num_warmup": 100}``. Paths are those of the command line, so that
        ``network.width``, ``prior.weight_scale`` and ``inference.step_size`` are options too, and with ``store`` those of
        the run: ``store.checkpoint_seconds``, ``store.predictive_rows``, ``limits.memory``, ``limits.attempts``, ``rerun``
        and ``warm_start``.

    Returns
    -------
    Posterior

    Raises
    ------
    ConfigError
        If the arguments do not fit. It is raised before anything is compiled, and says in one sentence what is wrong.
    FloatingPointError
        If no chain has a finite draw.

    Examples
    --------
    >>> posterior = bdl.fit("mlp", x, y, inference="nuts", seed=0)  # doctest: +SKIP
    >>> posterior.predict(x_new).interval(0.9)  # doctest: +SKIP
    """
    given = sorted_options(options, keywords)
    if given.rest and bayesian is None:
        raise ConfigError(
            f"rest.{min(given.rest)} is an option of partly Bayesian networks: give bayesian='last_layer', say."
        )
    if store is None:
        refuse_kept(given.kept)
    shown = fitting.progress_of(progress)
    precision = checked_precision(precision)
    with settings(precision):
        parts, rows, job = fitting.prepare(
            network,
            x,
            y,
            model=model,
            inference=inference,
            prior=prior,
            likelihood=likelihood,
            temperature=temperature,
            seed=seed,
            standardize=standardize,
            options=given,
            precision=precision,
        )
        price = {"num_grads": 0.0, "seconds": 0.0}
        if store is not None:
            from bdlbench.api.stored import fit_stored

            rest = (
                None
                if bayesian is None
                else functools.partial(
                    partly.fix_the_rest, rows=rows, job=job, bayesian=bayesian, options=given.rest, shown=shown
                )
            )
            return fit_stored(parts, rows, job, store, progress, given.kept, rest)
        if bayesian is not None:
            parts, price = partly.fix_the_rest(parts, rows, job, bayesian, given.rest, shown)
            job = make_job(parts, rows, job.seed)
            job = check_job(job)
        if "limits.memory" in given.kept:
            limits = {"memory": given.kept["limits.memory"]}
            configuration.check_limits(limits)
            job = dataclasses.replace(job, config={**job.config, "limits": limits})
        draws = fitting.sample(job, shown)
        return from_draws(parts, rows, job, draws, progress, price)


def from_draws(
    parts: Parts, rows: Rows, job: Job, draws: fitting.Draws, progress: Any, rest: Mapping[str, float] | None = None
) -> "Posterior":
    """Make the posterior from the draws of a fit.

    ``rest`` has the gradients and seconds of the earlier fit of weights that stay at a mode, if there are such weights.
    """
    dataset = job.dataset
    server = Server(
        program=job.program,
        numbers=dict(job.numbers),
        inputs=rows.inputs,
        targets=rows.targets,
        seed=job.seed,
        feature_shape=dataset.train.x.shape[1:],
        rows=networks.rows_needed(job.program, job.numbers, dataset, draws.theta.shape[-1]),
        theta=draws.theta,
        good=draws.good,
        anchor=draws.anchor,
        gaussian=networks.is_normal(job.program, job.numbers, dataset),
    )
    facts = {
        "schedule": dict(job.program.stages[-1].schedule._asdict()),
        "num_train": len(dataset.train.y),
        "seconds": {**draws.seconds, **({"rest": rest["seconds"]} if parts.fixed and rest else {})},
        "rest_grads": rest["num_grads"] if parts.fixed and rest else 0.0,
        "notes": list(dataset.notes),
    }
    origin = Origin(rows, job, draws.start, draws.position, draws, progress)
    return Posterior(server, parts, facts, draws.stats, origin=origin)


def _restored(
    server: dict[str, Any], parts: Parts, facts: Any, stats: Any, report: Any, origin: tuple[Any, ...] | None
) -> "Posterior":
    """Make a posterior from the values that :meth:`Posterior.__reduce__` returned."""
    nodes, _ = configuration.split(parts.nodes)
    program = make_program(parts, nodes, server["numbers"], server["inputs"], server["targets"])
    back = None
    if origin is not None:
        rows, start, position = origin
        with settings(parts.precision):
            back = Origin(rows, make_job(parts, rows, server["seed"]), start, position)
    return Posterior(Server(program=program, **server), parts, facts, stats, origin=back, report=report)


class Posterior:
    """Draws from the posterior of a model, with the methods that use them.

    Made by :func:`bdlbench.fit` and :func:`bdlbench.load`. The particles of a population are laid out as chains.
    """

    def __init__(
        self,
        server: Server,
        parts: Parts,
        facts: Mapping[str, Any],
        stats: Mapping[str, np.ndarray],
        *,
        origin: Origin | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        self._server, self._parts, self._facts, self._stats = server, parts, dict(facts), dict(stats)
        self._origin = origin
        self._given_report = report

    def __reduce__(self) -> Any:
        # The functions of a program cannot be pickled, so the parts from which it is built are pickled instead.
        server = {f.name: getattr(self._server, f.name) for f in dataclasses.fields(Server) if f.name != "program"}
        origin = self._origin and (self._origin.rows, self._origin.start, self._origin.position)
        return _restored, (server, self._parts, self._facts, self._stats, dict(self._report), origin)

    # ---- properties

    @property
    def num_chains(self) -> int:
        """Number of chains; for populations, the number of particles of all chains together."""
        return len(self._server.good)

    @property
    def num_draws(self) -> int:
        """Number of draws of each chain."""
        return self._server.theta.shape[1]

    @property
    def schedule(self) -> Schedule:
        """The schedule of the last stage."""
        return Schedule(**self._facts["schedule"])

    @property
    def precision(self) -> Precision:
        """The floating-point precision of the computation, ``float32`` or ``float64``."""
        return self._server.precision

    @property
    def task(self) -> str:
        """``regression`` or ``classification``."""
        return self._server.targets.task

    @property
    def classes(self) -> np.ndarray | None:
        """The caller's labels (K,) in the order of the probabilities; None for regression."""
        return self._server.targets.classes

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by phase: compile, warmup, sample."""
        return dict(self._facts["seconds"])

    @property
    def notes(self) -> list[str]:
        """Notes on how the training rows were changed, for example columns that were left out."""
        return list(self._facts["notes"])

    @functools.cached_property
    def _report(self) -> Mapping[str, Any]:
        if self._given_report is not None:
            return self._given_report
        assert self._origin is not None
        assert self._origin.draws is not None
        with settings(self.precision):
            found = fitting.diagnose(self._origin.job, self._origin.draws)
        if self._facts["rest_grads"]:
            found["diagnostics"]["num_grads"]["rest"] = self._facts["rest_grads"]
        return found

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics of the draws, as in the record of a run; in function space, at up to 500 training rows.

        The keys are ``rhat_max``, ``ess_bulk_min``, ``ess_bulk_median`` and ``ess_tail_min`` (None if the draws are not
        a Markov chain), ``psis_khat`` if the method has a density, ``configurational_temperature`` and its error if the
        sampler has no Metropolis test, ``num_diverging``, ``num_nonfinite``, and ``num_grads``: gradient evaluations on
        all rows, by phase. They are computed at the first access.
        """
        return dict(self._report["diagnostics"])

    @property
    def warnings(self) -> list[str]:
        """Warnings about the results, one sentence each, for example that the chains disagree."""
        return list(self._report["warnings"])

    @property
    def not_assessed(self) -> list[str]:
        """The diagnostics that could not be computed, each with the reason."""
        return list(self._report.get("not_assessed", []))

    def __repr__(self) -> str:
        labels = self._parts.labels
        what = labels.get("model") or labels.get("network")
        lines = [
            f"Posterior({labels['inference']}, {what}: {self.num_chains} chains x {self.num_draws} draws of "
            f"{self._server.theta.shape[-1]} parameters, {self.task} from {self._facts['num_train']} rows)"
        ]
        shown = {"rhat_max": "R-hat", "ess_bulk_min": "bulk ESS", "psis_khat": "k-hat", "num_diverging": "divergences"}
        found = {word: self.diagnostics.get(name) for name, word in shown.items()}
        lines.append("  " + ", ".join(f"{word} {value:.4g}" for word, value in found.items() if value is not None))
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join([*lines, *(f"  not assessed: {text}" for text in self.not_assessed)])

    # ---- new rows

    def predict(self, x: Any, *, num_draws: int | None = None, precision: Any = None) -> Prediction:
        """The posterior predictive distribution at new rows, in your units.

        Methods that linearise the network (Laplace) predict with the linearised network.

        Parameters
        ----------
        x : rows, in the same form as at the fit
            The columns of a DataFrame are found by name.
        num_draws : int, optional
            Largest number of draws to use, approximately; they are evenly spaced. None uses all draws.
        precision : "float32" or "float64", optional
            Precision of the prediction; None is that of the fit. In float64 the prediction at a row hardly depends on
            the other rows of the call.

        Raises
        ------
        ConfigError
            If the rows do not fit those of the fit.
        FloatingPointError
            If a finite draw gives a prediction that is not finite.
        """
        server = self._server
        seen = server.inputs.standardised(x)
        every = 1
        if num_draws is not None:
            if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
                raise ConfigError(f"num_draws={num_draws!r} must be a whole number, at least 1.")
            every = max(1, math.ceil(server.good.size / num_draws))
            every = min(every, server.theta.shape[1])

        def again(y: np.ndarray | None, seed: int) -> dict[str, np.ndarray]:
            return server.predict(seen, y, seed=seed, every=every, precision=precision)

        arrays = again(None, 0)
        wanted = ("mean", "variance", "probs", "sample", "log_lik")
        kept: dict[str, np.ndarray] = {name: arrays[name] for name in wanted if name in arrays}
        for name in ("mean", "probs"):
            # With a likelihood that is not normal, the mean itself may not exist.
            at_fault = name in kept and (name == "probs" or server.gaussian)
            if at_fault and not (fine := np.isfinite(kept[name])).all() and fine.any():
                draw, row = np.argwhere(~fine)[0][:2]
                raise FloatingPointError(
                    f"The prediction of draw {draw} at row {row} is not finite: see that x is of the size of the "
                    "training rows."
                )
        return Prediction(
            kept, server.targets, gaussian=server.gaussian, again=again, scored=lambda: server.scored(seen)
        )

    def standardize(self, x: Any) -> Any:
        """Convert rows to the units that the model sees. Modules in :meth:`apply` take such rows."""
        seen = self._server.inputs.standardised(x).astype(self._server.inputs.dtype(self.precision))
        return self._server.inputs.unpack(seen)

    # ---- parameters

    @functools.cached_property
    def _sites(self) -> dict[str, np.ndarray]:
        return self._server.sites()

    @property
    def sites(self) -> dict[str, np.ndarray]:
        """All named sites of the model, (chain, draw, ...), including the noise scale.

        They belong to standardised data. A draw that is not finite is NaN.
        """
        return dict(self._sites)

    @property
    def _weights(self) -> dict[str, np.ndarray]:
        """All sites, including the fixed ones, which are the same in every draw."""
        shape = self._server.good.shape
        return {
            **{name: np.broadcast_to(value, (*shape, *value.shape)) for name, value in self._parts.fixed.items()},
            **self._sites,
        }

    @property
    def params(self) -> Any:
        """The parameters as the module's own pytree with leaves (chain, draw, ...); for a NumPyro model a dict of sites.

        They belong to standardised inputs and targets, see :meth:`standardize`. For methods that linearise the network
        they are draws around the mode. Predictions then use the linearised network, not the network at these draws; a
        warning says so.
        """
        if self._server.anchor is not None:
            warnings.warn(
                "This method predicts from the network linearised at its mode: the network at these parameters is "
                "another function. Use predict.",
                stacklevel=2,
            )
        if not self._parts.has_network:
            return self.sites
        return networks.params_of(self._module, self._weights)

    @functools.cached_property
    def _module(self) -> "networks.Module":
        server = self._server
        return networks.module_of(
            self._parts,
            server.numbers,
            server.inputs,
            server.targets,
            server.feature_shape,
            num_outputs(server.targets),
        )

    def apply(self, function: Callable[..., Any], *args: Any) -> Any:
        """Compute ``function(module, *args)`` for the module of every draw; the result has leaves (chain, draw, ...).

        The module has the parameters of the draw, which belong to standardised data. A Linen module is bound to them.
        For a NumPyro model the function gets the dict of its sites instead of a module.

        Examples
        --------
        >>> posterior.apply(lambda net, x: net(x), posterior.standardize(x_new))  # doctest: +SKIP
        """
        import jax
        import jax.numpy as jnp

        with settings(self.precision):
            args = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, args)
            if not self._parts.has_network:
                return networks.map_over(lambda sites: function(sites, *args), self._sites)
            module = self._module
            return networks.map_over(
                lambda tree: function(module.bind(tree), *args), networks.params_of(module, self._weights)
            )

    # ---- ArviZ

    @property
    def data_tree(self) -> Any:
        """The draws as an ArviZ DataTree; see :meth:`to_data_tree`."""
        return self.to_data_tree()

    def to_data_tree(self, *, log_likelihood: bool = True, max_bytes: int = MOST_BYTES) -> Any:
        """The draws as an ArviZ DataTree: posterior, sample_stats, and log_likelihood and y of the training rows.

        Parameters
        ----------
        log_likelihood : bool
            Whether to compute the log likelihood of the training rows, (chain, draw, row), in your units.
        max_bytes : int
            If the log likelihood would take more memory than this, it is left out with a warning.
        """
        import xarray as xr

        chains, draws = np.arange(self.num_chains), np.arange(self.num_draws)

        def group(values: Mapping[str, np.ndarray], dims: tuple[str, ...] = ()) -> Any:
            coords = {"chain": chains, "draw": draws}
            out = {
                name: (("chain", "draw", *(dims or (f"{name}_dim_{i}" for i in range(v.ndim - 2)))), v)
                for name, v in values.items()
            }
            return xr.Dataset(out, coords=coords)

        population = self._server.good.shape[0] // len(self._server.theta)
        names = {"log_density": "lp"}
        stats = {names.get(name, name): np.repeat(v, population, 0) for name, v in self._stats.items()}
        groups = {"posterior": group(self._sites)}
        if stats:
            groups["sample_stats"] = group(stats)
        if self._origin is not None:
            rows = self._origin.rows
            size = self._server.good.size * len(rows.y) * np.dtype(self.precision).itemsize
            if log_likelihood and size <= max_bytes:
                groups["log_likelihood"] = group({"y": self._log_likelihood(rows)}, ("row",))
            elif log_likelihood:
                warnings.warn(
                    f"log_likelihood is left out: it would take {size / 2**30:.1f} GiB, more than max_bytes="
                    f"{max_bytes}; call to_data_tree with a larger one.",
                    stacklevel=2,
                )
            dims = ("row", "target")[: rows.y.ndim]
            groups["observed_data"] = xr.Dataset({"y": (dims, rows.y)}, coords={"row": np.arange(len(rows.y))})
        tree = xr.DataTree.from_dict(groups)
        tree.attrs["inference_library"] = "bdlbench"
        return tree

    def _log_likelihood(self, rows: Rows) -> np.ndarray:
        with settings(self.precision):
            dataset = rows.dataset()
        found = self._server.predict(dataset.train.x, dataset.train.y)["log_lik"]
        width = rows.targets.shape[0] if rows.targets.shape else 1
        found = found - np.broadcast_to(np.log(rows.targets.loc_scale[1]), (width,)).sum()
        out = np.full((*self._server.good.shape, found.shape[-1]), np.nan, self.precision)
        out[self._server.good] = found
        return out

    # ---- more rows

    def update(self, x_more: Any, y_more: Any, *, seed: int | None = None) -> "Posterior":
        """Fit the posterior given all rows, old and new, with the scaling and the classes of the first fit.

        Only the start depends on the first fit. MCMC and SG-MCMC begin at the last draws of their chains and adapt
        again. A variational guide continues from its present state. Laplace and SWAG continue to optimise from their
        mode. Methods that choose their own start (SMC) are fitted again. The schedule is that of the first fit. The
        costs of the result count the update alone.

        Parameters
        ----------
        x_more, y_more : as at the fit, in your units
        seed : int, optional
            None is the seed of the first fit plus one.

        Raises
        ------
        ConfigError
            If the rows do not fit, a class was not seen by the fit, or the posterior has no training rows.
        """
        from bdlbench.api.updating import updated

        if self._origin is None:
            raise ConfigError(
                "update needs the training rows, which this posterior lacks: save it with rows=True, put the data of a "
                "stored run back, or fit all rows anew."
            )
        with settings(self.precision):
            return updated(self, x_more, y_more, self._server.seed + 1 if seed is None else seed)

    # ---- to disk

    def save(self, folder: str | Path, *, rows: bool = False) -> Path:
        """Save to a folder, which :func:`bdlbench.load` reads. The files hold data (npz and JSON) and no code.

        Parameters
        ----------
        folder : path
            Created if it does not exist. A posterior that was saved there before is replaced.
        rows : bool
            Whether to save the training rows too. Updates and pointwise log likelihoods need them.
        """
        from bdlbench.api.saved import save

        return save(self, Path(folder), rows=rows)
