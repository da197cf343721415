"""One job of a running group: its lanes, its results so far and its storage."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdlbench.metrics.evaluate import needs_each_draw
from bdlbench.runs import against
from bdlbench.runs.job import Job
from bdlbench.runs.look import Look
from bdlbench.runs.scores import OOD
from bdlbench.runs.storage import Storage, Variable
from bdlbench.runs.tally import Tally
from bdlbench.sampling.clock import Clock
from bdlbench.store.writer import RunWriter

PHASES = ("setup", "compile", "warmup", "sample", "predict")


class Earlier(NamedTuple):
    """The results of earlier attempts of a run that continues from its checkpoint.

    Attributes
    ----------
    tally : mapping of arrays
        The value of :meth:`~bdlbench.runs.tally.Tally.state`.
    allocated : mapping
        The value of :attr:`~bdlbench.runs.storage.Storage.allocated`.
    seconds : mapping
        The run's share by phase.
    """

    tally: Mapping[str, np.ndarray]
    allocated: Mapping[Variable, tuple[Sequence[int], str]]
    seconds: Mapping[str, float]


class Member(NamedTuple):
    """One job while its group runs.

    Attributes
    ----------
    job : Job
    lanes : slice
        The lanes of the group that are the chains of this job.
    tally : Tally
    storage : Storage
    seconds : mapping
        Seconds of earlier attempts, by phase.
    reference : str or None
        The reference posterior that the job samples.
    """

    job: Job
    lanes: slice
    tally: Tally
    storage: Storage
    seconds: Mapping[str, float]
    reference: str | None = None

    def num_grads(self) -> dict[str, float]:
        """Return the gradient evaluations by phase, in units of the full training set, as a sum over the chains."""
        spent = {phase: rows / len(self.job.dataset.train.y) for phase, rows in self.tally.row_grads.items()}
        return spent if self.job.parent is None else spent | {"warm_start": self.job.parent.num_grads}

    def share(self, clock: Clock, num_jobs: int) -> dict[str, float]:
        """Return the seconds of all attempts by phase. Of this attempt the job has an equal share of the group's."""
        return {phase: self.seconds[phase] + clock.seconds.get(phase, 0.0) / num_jobs for phase in PHASES}

    def use(self, look: Look) -> None:
        """Add a look to the tally, and store its draws and predictions."""
        self.tally.add(look)
        self.storage.write(look)

    def append_curve(self, phase: str, tally: Tally, clock: Clock, num_jobs: int) -> None:
        """Append the scores of a tally's draws, at the price of the job so far, to the curve.

        Its seconds are those of warm-up and sampling, the job's share of them as in its record.
        """
        found, taken = tally.scores(self.job.metrics, self.job.dataset), self.share(clock, num_jobs)
        price = {"num_grads": sum(self.num_grads().values()), "seconds": taken["warmup"] + taken["sample"]}
        if self.reference is not None:
            alone = self.job.independent or tally.population > 1
            found = {**found, **against.at_look(self.reference, tally.function.values, independent=alone)}
        self.storage.writer.append_curve({"phase": phase, "num_draws": tally.num_draws, **price, **found})

    def fidelity(self) -> dict[str, Any] | None:
        """How near the draws are to those of the reference; None of a run that has no reference.

        Raises
        ------
        ConfigError
            If no chain has finite draws throughout.
        """
        if self.reference is None:
            return None
        return against.compared(
            self.reference,
            self.tally.function.values,
            sum(self.num_grads().values()),
            independent=self.job.independent,
            population=self.tally.population,
        )


def make_member(
    job: Job,
    writer: RunWriter,
    index: int,
    earlier: Earlier | None = None,
    *,
    gaussian: bool,
    reference: str | None = None,
) -> Member:
    """Make the member with this index in its group, new or with the results of earlier attempts.

    Raises
    ------
    KeyError, ValueError, TypeError
        If ``earlier`` belongs to a different job.
    """
    chains, rows = job.num_chains, job.config["store"]["predictive_rows"]
    places = [*job.dataset.shifted, *(OOD + name for name in job.dataset.ood)]
    tally = Tally(chains, places, gaussian=gaussian, each=needs_each_draw(job.metrics))
    if earlier is None:
        earlier = Earlier({}, {}, dict.fromkeys(PHASES, 0.0))
    else:
        tally.restore(earlier.tally)
        if tally.drawn and tally.function.values is None:
            reference = None  # it was added since the checkpoint: the stored draws are compared when the run is found
    storage = Storage(writer, job.dataset, job.program.stages[-1].schedule.num_samples, rows, earlier.allocated)
    own = slice(index * chains, (index + 1) * chains)
    return Member(job, own, tally, storage, earlier.seconds, reference)
