"""How a run ended, in one sentence where it did not end well."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bdlbench.metrics.diagnostics import MIN_DRAWS, e_bfmi
from bdlbench.runs import tuned
from bdlbench.runs.job import Job
from bdlbench.sampling.programs import UNFINISHED

NO_MOMENTS = "y has no finite variance given theta: RMSE and all that needs moments are left out"
BOUNDS = {"reached_max_treedepth": "max_tree_depth", "reached_max_leapfrog_steps": "max_leapfrog_steps"}
"""Statistics that say that a transition was cut short, and the option that did it."""


def status(
    job: Job, bad: Mapping[int, tuple[int, str, int]], num_nonfinite: int, num_overflowing: int = 0
) -> tuple[str, str | None]:
    """``complete``, or ``diverged`` with the reason.

    Parameters
    ----------
    job : Job
    bad : mapping from chain to (step, phase, stage)
        Where chains' log densities first were not finite, or ``UNFINISHED`` for the step.
    num_nonfinite : int
        Draws that are not finite, or whose predictions are not.
    num_overflowing : int
        Those of them that are finite themselves.
    """
    chains = job.num_chains
    if bad:
        chain, (step, phase, stage) = min(bad.items(), key=lambda item: item[1][0])
        word = "warm-up" if phase == "warmup" else "sampling"
        method = job.program.stages[stage].name
        if step == UNFINISHED:
            count = sum(first == UNFINISHED for first, _, _ in bad.values())
            return "diverged", (
                f"the warm-up of {method} did not reach the posterior in {count} of {chains} chains (first in "
                f"chain {chain}): give it more steps, or settings with which a step goes further"
            )
        if step == 0 and phase == "warmup" and stage == 0:
            return "diverged", (
                f"the log density is non-finite in {len(bad)} of {chains} chains, first at step 0 ({phase} of {method}, "
                f"chain {chain}), the very first step of the run: check that model, data and prior fit"
            )
        return "diverged", (
            f"the log density became non-finite in {len(bad)} of {chains} chains, first at step {step} ({word} of "
            f"{method}, chain {chain}): try a smaller step size or learning rate"
        )
    if num_overflowing:
        return "diverged", (
            f"the predictions of {num_overflowing} finite draws are not finite: try a smaller step size or learning rate, "
            "and see that inputs and prior are of usual size"
        )
    if num_nonfinite:
        return "diverged", f"{num_nonfinite} draws are not finite: try a smaller step size or learning rate"
    return "complete", None


def warnings(
    job: Job,
    num_diverging: int,
    population: int,
    capped_draws: Mapping[str, int],
    energy: np.ndarray | None,
    diagnostics: Mapping[str, Any],
) -> list[str]:
    """What a reader of the table must know.

    Parameters
    ----------
    job : Job
    num_diverging : int
        Transitions that diverged after warm-up; of a population, summed over its particles.
    population : int
        Particles that a chain carries, each with its own transition a step; 1 without a population.
    capped_draws : mapping
        Draws at which each of the statistics of ``BOUNDS`` was reached.
    energy : array (C, S) or None
        Of a Hamiltonian sampler's draws.
    diagnostics : mapping
        ``rhat_max``, ``ess_bulk_min`` and ``psis_khat``, where there are any.
    """
    schedule = job.program.stages[-1].schedule
    out = []
    steps = population * schedule.num_chains * schedule.num_samples * max(1, schedule.thinning)
    share = num_diverging / steps
    if share > 0.05:
        out.append(f"{share:.1%} of the transitions diverged (over 5 %): not to be ranked")
    elif share > 0.01:
        out.append(f"{share:.1%} of the transitions diverged (over 1 %)")
    for name, count in capped_draws.items():
        if (capped := count / (schedule.num_chains * schedule.num_samples)) > 0.01:
            out.append(f"{capped:.0%} of the draws reached {BOUNDS[name]}")
    rhat, ess = diagnostics.get("rhat_max"), diagnostics.get("ess_bulk_min")
    if rhat is not None and rhat > 1.01:
        out.append(f"R-hat {rhat:.4g} > 1.01: the chains disagree")
    if ess is not None and ess < 100 * schedule.num_chains:
        out.append(f"bulk ESS {ess:.0f} < {100 * schedule.num_chains} (100 a chain)")
    khat = diagnostics.get("psis_khat")
    if khat is not None and khat >= 0.7:
        out.append(f"Pareto k-hat {khat:.2f} >= 0.7: not to be trusted as a posterior")
    if energy is not None:
        out += energy_warnings(energy)
    out += [job.parent.warning()] if job.parent else []
    if job.numbers["temperature"] != 1:
        out.append(f"tempered: T = {job.numbers['temperature']:g}, not the Bayesian posterior")
    return out + tuned.warnings(job.config, job.labels)


def energy_warnings(energy: np.ndarray) -> list[str]:
    """What the energies (C, S) of a Hamiltonian sampler warn of; nothing where a chain has too few draws to say.

    Of the chains whose energy stays finite: one that has lost its own is named by :func:`status`.
    """
    finite = energy[np.isfinite(energy).all(1)]
    if energy.shape[1] < MIN_DRAWS or not len(finite):
        return []
    moving = finite[np.ptp(finite, axis=1) > 0]
    out = []
    if len(moving) < len(finite):
        out.append(f"the energy of {len(finite) - len(moving)} chains never changes: they stand still")
    if len(moving) and (fraction := float(e_bfmi(moving).min())) < 0.3:
        out.append(f"E-BFMI {fraction:.2f} < 0.3")
    return out
