"""How a run ended, in one sentence where it did not end well."""

from collections.abc import Mapping

from bdlbench.config import Job


def status(job: Job, bad: Mapping[int, tuple[int, str, int]], num_nonfinite: int) -> tuple[str, str | None]:
    """``complete``, or ``diverged`` with the reason.

    Parameters
    ----------
    job : Job
    bad : mapping from chain to (step, phase, stage)
        Where chains' log densities first were not finite.
    num_nonfinite : int
        Draws that are not finite.
    """
    chains = job.num_chains
    if bad:
        chain, (step, phase, stage) = min(bad.items(), key=lambda item: item[1][0])
        word = "warm-up" if phase == "warmup" else "sampling"
        method = job.program.stages[stage].name
        if step == 0 and phase == "warmup" and stage == 0:
            return "diverged", (
                f"the log density is non-finite in {len(bad)} of {chains} chains, first at step 0 ({phase} of {method}, "
                f"chain {chain}), where nothing has moved: check that model, data and prior fit"
            )
        return "diverged", (
            f"the log density became non-finite in {len(bad)} of {chains} chains, first at step {step} ({word} of "
            f"{method}, chain {chain}): try a smaller step size or learning rate"
        )
    if num_nonfinite:
        return "diverged", f"{num_nonfinite} draws are not finite: try a smaller step size or learning rate"
    return "complete", None
