"""The results of one run so far: counts, running predictions and series of energies.

The memory for predictions depends on the number of test rows, but not on the number of draws.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench.metrics.diagnostics import psis_khat
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.runs.against import Draws
from bdlbench.runs.look import Look
from bdlbench.runs.scores import Metrics, scores
from bdlbench.sampling.loop import Block
from bdlbench.sampling.programs import NEVER

FACTS = ("row_grads", "num_diverging", "num_nonfinite", "num_draws", "drawn", "population", "absent", "capped")
"""Plain values that a checkpoint keeps."""
SERIES = ("energy", "log_ratios", "temperatures")
"""Lists of arrays (C, n) that a checkpoint keeps."""
BOUNDS = {"reached_max_treedepth": "max_tree_depth", "reached_max_leapfrog_steps": "max_leapfrog_steps"}
"""Statistics that tell that a transition was stopped early, each with the option that limits it."""


class Tally:
    """Counts, running predictions and series of one job. Only the methods of this class change them.

    Non-finite draws, and draws with non-finite predictions, are counted and left out of all averages.

    Parameters
    ----------
    num_chains : int
        The number of chains of the job. A population in one chain counts once.
    places : sequence of str
        Names of the shifted and out-of-distribution rows, which are predicted in addition to the test rows.
    gaussian : bool
        Whether the distribution of y given theta is normal.
    each : bool
        Whether the densities of single draws are kept, for metrics that need them.

    Attributes
    ----------
    mixtures : dict
        The running predictive mixture for each place. The key of the test rows is ``""``.
    row_grads : dict
        The number of gradient evaluations of single training rows, by phase.
    num_diverging : int
        The number of divergent transitions after warm-up.
    num_draws, num_nonfinite : int
        The number of draws of all chains that were used for the predictions, and the number that were left out.
    drawn : int
        The number of draws of one chain so far.
    population : int
        Number of particles of a chain; 1 without a population.
    absent : list of str
        The moments (mean, variance) that y given theta does not have, as far as the draws have shown.
    bad : dict
        For each chain that became non-finite or whose warm-up did not finish: (step, phase, stage).
    overflowing : dict
        The number of finite draws with non-finite predictions, by chain or particle.
    capped : dict
        The number of draws at which each statistic of ``BOUNDS`` was true.
    energy, log_ratios : list of arrays (C, n)
        Energies of a Hamiltonian sampler; log importance ratios of an approximation with a density.
    temperatures : list of arrays (C, n)
        Terms of the configurational temperature of a sampler without a Metropolis test, in units of the run's own.
    function : Draws
        Values at the points of a reference posterior, where the run has one.
    """

    def __init__(self, num_chains: int, places: Sequence[str], *, gaussian: bool, each: bool = False) -> None:
        self.num_chains = num_chains
        self.mixtures = {place: PredictiveMixture(gaussian=gaussian, each=each) for place in ("", *places)}
        self.row_grads = {"warmup": 0, "sample": 0}
        self.num_diverging = self.num_nonfinite = self.num_draws = self.drawn = 0
        self.population = 1
        self.absent: list[str] = []
        self.bad: dict[int, tuple[int, str, int]] = {}
        self.overflowing: dict[int, int] = {}
        self.capped: dict[str, int] = {}
        self.energy: list[np.ndarray] = []
        self.log_ratios: list[np.ndarray] = []
        self.temperatures: list[np.ndarray] = []
        self.function = Draws()
        self._scored: tuple[int, dict[str, float]] | None = None

    def charge(self, block: Block, num_rows: int, *, last: bool) -> None:
        """Count the gradients and divergences of a block, and the chains that have become non-finite in it.

        A chain that became non-finite in an earlier block costs nothing.

        Parameters
        ----------
        block : Block
            The block of the job's own lanes.
        num_rows : int
            N, the number of training rows.
        last : bool
            Whether the block belongs to the last stage. Gradients of earlier stages count as warm-up.
        """
        alive = np.array([chain not in self.bad for chain in range(self.num_chains)])
        phase = block.phase if last else "warmup"
        # Gradients of single rows are whole numbers. Therefore the sum does not depend on where blocks end.
        self.row_grads[phase] += int(np.rint(block.num_grads * num_rows)[alive].sum())
        if phase == "sample":
            self.num_diverging += int(block.num_diverging[alive].sum())
        for chain, step in enumerate(block.bad_step):
            if step < NEVER and chain not in self.bad:
                self.bad[chain] = (int(step), block.phase, block.stage)

    def add(self, look: Look) -> None:
        """Add the draws of a look."""
        self.population, self.drawn = look.population, look.stop
        if new := look.absent - set(self.absent):
            self.absent = sorted({*self.absent, *new})
            for mixture in self.mixtures.values():
                mixture.forget(new)
        for chain, lost in enumerate((look.good & ~look.shown).sum(1).tolist()):
            if lost:
                self.overflowing[chain] = self.overflowing.get(chain, 0) + lost
        self.num_draws += int(look.shown.sum())
        self.num_nonfinite += int((~look.shown).sum())
        for name in BOUNDS:
            if name in look.stats:
                self.capped[name] = self.capped.get(name, 0) + int(look.stats[name].sum())
        if "energy" in look.stats:
            self.energy.append(look.stats["energy"])
        if "configurational_temperature" in look.stats:
            self.temperatures.append(look.stats["configurational_temperature"])
        if "log_q" in look.stats:
            ratio = look.stats["log_density"].astype(np.float64) - look.stats["log_q"]
            self.log_ratios.append(np.where(look.good, ratio, np.nan))
        if look.function is not None:
            self.function.add(look.function, look.shown_in_lanes)
        for place in look.predictions:
            look.pool(place, self.mixtures[place])

    @property
    def over(self) -> bool:
        """Whether every chain has become non-finite. Later draws are then not kept."""
        return len(self.bad) == self.num_chains

    def sound_chains(self) -> list[int]:
        """Return the indices of the chains, or particles, all of whose draws and predictions are finite."""
        every = range(self.num_chains * self.population)
        return [c for c in every if c // self.population not in self.bad and c not in self.overflowing]

    def scores(self, metrics: Metrics, dataset: Any) -> dict[str, float]:
        """Return the metrics at the test rows in original units.

        The result is kept and computed again only after further draws.
        """
        own = self.mixtures[""]
        if self._scored is None or self._scored[0] != own.num_draws:
            self._scored = own.num_draws, scores(metrics, own, dataset)
        return self._scored[1]

    def khat(self, num_samples: int) -> float | None:
        """Return the largest Pareto k-hat of the approximations q of the chains.

        It is None if q has no density, a draw is not finite, or ``num_samples``, the number of draws of one chain, is
        less than 25. It is infinite if the posterior density at a draw of q is not finite.
        """
        if not self.log_ratios or self.num_nonfinite or num_samples < 25:
            return None
        chains = np.concatenate(self.log_ratios, 1)
        return max(psis_khat(ratios) if np.isfinite(ratios).all() else math.inf for ratios in chains)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything gathered as arrays by name, from which :meth:`restore` can continue."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in FACTS}
        facts |= {"bad": list(self.bad.items()), "overflowing": list(self.overflowing.items())}
        out = {"facts": np.array(json.dumps(facts))}
        out |= {f"series/{name}": np.concatenate(getattr(self, name), 1) for name in SERIES if getattr(self, name)}
        for place, mixture in self.mixtures.items():
            out |= {f"mixture/{place}/{key}": value for key, value in mixture.state().items()}
        return out | self.function.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace everything gathered by what :meth:`state` returned earlier.

        Raises
        ------
        KeyError, ValueError, TypeError
            If the state belongs to a different job.
        """
        facts = json.loads(str(state["facts"]))
        for name in FACTS:
            setattr(self, name, facts[name])
        self.bad = {chain: (step, phase, stage) for chain, (step, phase, stage) in facts["bad"]}
        self.overflowing = dict(facts["overflowing"])
        for name in SERIES:
            setattr(self, name, [state[key] for key in [f"series/{name}"] if key in state])
        self.function.restore(state)
        for place, mixture in self.mixtures.items():
            start = f"mixture/{place}/"
            mixture.restore({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})
