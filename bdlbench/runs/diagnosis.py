"""The status, the warnings and the diagnostics of a run, as pure functions of its tally."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bdlbench.metrics.diagnostics import MIN_DRAWS, TEMPERATURE, e_bfmi, mean_and_error
from bdlbench.runs import tuned
from bdlbench.runs.job import Job
from bdlbench.runs.tally import BOUNDS, Tally
from bdlbench.sampling.programs import UNFINISHED

TEMPERATURE_TOLERANCE = 0.2
"""Relative error of the configurational temperature above which a run has a warning."""


class Diagnosis(NamedTuple):
    """The part of a record that says how the run ended.

    Attributes
    ----------
    status : "complete" or "diverged"
    reason : str or None
        Why the run diverged, in one sentence; None for a complete run.
    warnings : list of str
    diagnostics : dict
        Mixing of the chains; ``psis_khat`` if the draws are from a distribution with a density; for samplers without a
        Metropolis test ``configurational_temperature`` and its Monte Carlo error ``configurational_temperature_mcse``.
    not_assessed : list of str
        The checks that could not be made, with the reasons. A run without warnings has not passed these checks.
    """

    status: str
    reason: str | None
    warnings: list[str]
    diagnostics: dict[str, Any]
    not_assessed: list[str]


def diagnosis(job: Job, tally: Tally, mixing: Mapping[str, Any], *, markov: bool = True) -> Diagnosis:
    """Diagnose a run.

    Parameters
    ----------
    job : Job
    tally : Tally
    mixing : mapping
        ESS and R-hat, as :meth:`~bdlbench.runs.storage.Storage.mixing` gives them.
    markov : bool
        Whether the draws of one chain are a Markov chain.
    """
    diagnostics = dict(mixing)
    if tally.log_ratios:
        diagnostics["psis_khat"] = tally.khat(job.program.stages[-1].schedule.num_samples)
    if tally.temperatures:
        diagnostics |= temperature(tally, job.numbers["temperature"])
    found = warnings(job, tally, diagnostics)
    return Diagnosis(*status(job, tally), found, diagnostics, not_assessed(job, tally, diagnostics, markov=markov))


def status(job: Job, tally: Tally) -> tuple[str, str | None]:
    """Return ("complete", None), or ("diverged", reason) if a chain, draw or prediction is not finite."""
    bad = tally.bad
    chains = job.num_chains
    if bad:
        chain, (step, phase, stage) = min(bad.items(), key=lambda item: item[1][0])
        word = "warm-up" if phase == "warmup" else "sampling"
        method = job.program.stages[stage].name
        if step == UNFINISHED:
            count = sum(first == UNFINISHED for first, _, _ in bad.values())
            return "diverged", (
                f"the warm-up of {method} did not reach the posterior in {count} of {chains} chains (first in "
                f"chain {chain}): give it more steps, or settings with longer steps"
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
    num_overflowing = sum(tally.overflowing.values())
    if num_overflowing:
        return "diverged", (
            f"the predictions of {num_overflowing} finite draws are not finite: try a smaller step size or learning rate, "
            "and see that inputs and prior are of usual size"
        )
    if tally.num_nonfinite:
        return "diverged", f"{tally.num_nonfinite} draws are not finite: try a smaller step size or learning rate"
    return "complete", None


def warnings(job: Job, tally: Tally, diagnostics: Mapping[str, Any]) -> list[str]:
    """Return sentences on what limits the use of the results, such as divergences or chains that have not mixed.

    Parameters
    ----------
    job : Job
    tally : Tally
    diagnostics : mapping
        ``rhat_max``, ``ess_bulk_min``, ``psis_khat`` and the configurational temperature, as far as they exist.
    """
    schedule = job.program.stages[-1].schedule
    out = []
    # Each particle of a population makes its own transitions.
    steps = tally.population * schedule.num_chains * schedule.num_samples * max(1, schedule.thinning)
    share = tally.num_diverging / steps
    if share > 0.05:
        out.append(f"{share:.1%} of the transitions diverged (over 5 %): not to be ranked")
    elif share > 0.01:
        out.append(f"{share:.1%} of the transitions diverged (over 1 %)")
    for name, count in tally.capped.items():
        if (capped := count / (schedule.num_chains * schedule.num_samples)) > 0.01:
            out.append(f"{capped:.0%} of the draws reached {BOUNDS[name]}")
    out += mixing_warnings(diagnostics, schedule.num_chains)
    khat = diagnostics.get("psis_khat")
    if khat is not None and khat >= 0.7:
        out.append(f"Pareto k-hat {khat:.2f} >= 0.7: not to be trusted as a posterior")
    if tally.energy:
        out += energy_warnings(np.concatenate(tally.energy, 1))
    out += temperature_warnings(diagnostics, job.numbers["temperature"])
    out += [job.parent.warning()] if job.parent else []
    if job.numbers["temperature"] != 1:
        out.append(f"tempered: T = {job.numbers['temperature']:g}, not the Bayesian posterior")
    out += tuned.warnings(job.config, job.labels, job.dataset.task)
    return out


def mixing_warnings(diagnostics: Mapping[str, Any], num_chains: int) -> list[str]:
    """Return the warnings that follow from R-hat and the effective sample size."""
    out = []
    rhat, ess = diagnostics.get("rhat_max"), diagnostics.get("ess_bulk_min")
    if rhat is not None and rhat > 1.01:
        out.append(f"R-hat {rhat:.4g} > 1.01: the chains disagree")
    if ess is not None and ess < 100 * num_chains:
        out.append(f"bulk ESS {ess:.0f} < {100 * num_chains} (100 a chain)")
    return out


def energy_warnings(energy: np.ndarray) -> list[str]:
    """Return the warnings that follow from the energies (C, S) of a Hamiltonian sampler.

    There are none with fewer than ``MIN_DRAWS`` draws. Only chains with finite energies are used; :func:`status`
    reports the others.
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


def temperature(tally: Tally, wanted: float) -> dict[str, float | None]:
    """The configurational temperature and its Monte Carlo error; None if no chain has enough finite values.

    Parameters
    ----------
    tally : Tally
    wanted : float
        T, the temperature of the run. The results are in units of T.
    """
    series = np.concatenate(tally.temperatures, 1)
    finite = series[np.isfinite(series).all(1)]
    found = mean_and_error(finite) if len(finite) and finite.shape[1] >= MIN_DRAWS else (None, None)
    return {name: None if value is None else value * wanted for name, value in zip(TEMPERATURE, found, strict=True)}


def temperature_warnings(diagnostics: Mapping[str, Any], wanted: float) -> list[str]:
    """A warning if the configurational temperature is wrong by more than a fifth, beyond its Monte Carlo error."""
    value, error = (diagnostics.get(name) for name in TEMPERATURE)
    if value is None or error is None or abs(value - wanted) <= max(TEMPERATURE_TOLERANCE * wanted, 4 * error):
        return []
    spread = "wider" if value > wanted else "narrower"
    return [
        f"configurational temperature {value:.3g} ± {error:.1g} in place of {wanted:g}: the draws are {spread} than the "
        "posterior, so that the step size or the warm-up is at fault"
    ]


def not_assessed(job: Job, tally: Tally, diagnostics: Mapping[str, Any], *, markov: bool) -> list[str]:
    """Name each check that could not be made, with the reason.

    Parameters
    ----------
    job : Job
    tally : Tally
    diagnostics : mapping
        As in a :class:`Diagnosis`.
    markov : bool
    """
    out, few = [], f"{tally.drawn} draws a chain are too few, at least {MIN_DRAWS} are needed"
    chains = len(tally.sound_chains())
    if not markov:
        out.append("R-hat and ESS: the draws are no Markov chain")
    elif not chains:
        out.append("R-hat and ESS: no chain has finite draws and predictions throughout")
    elif tally.drawn < MIN_DRAWS:
        out.append(f"R-hat and ESS: {few}")
    elif diagnostics.get("ess_bulk_min") is None:
        out.append("R-hat and ESS: nothing that is diagnosed varies")
    elif diagnostics.get("rhat_max") is None:
        out.append("R-hat: a single chain cannot show that others would go elsewhere")
    if tally.energy and tally.drawn < MIN_DRAWS:
        out.append(f"E-BFMI: {few}")
    if tally.log_ratios and diagnostics.get("psis_khat") is None:
        out.append("Pareto k-hat: fewer than 25 draws a chain, or draws that are not finite")
    if tally.temperatures:
        value, error = (diagnostics[name] for name in TEMPERATURE)
        if value is None or error is None:
            why = few if tally.drawn < MIN_DRAWS else "no chain is finite throughout"
            out.append(f"configurational temperature: {why}")
        elif 4 * error > 0.5 * job.numbers["temperature"]:
            out.append(f"configurational temperature: {value:.3g} ± {error:.2g} is too uncertain to say anything")
    return out
