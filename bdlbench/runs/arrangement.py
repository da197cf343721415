"""Arrange the jobs of a group as the lanes of one program: jobs x chains."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bdlbench.runs.job import Job
from bdlbench.runs.scores import OOD
from bdlbench.sampling.programs import Lane, Shared


def arrange(jobs: Sequence[Job]) -> tuple[Shared, Lane, Shared | None, dict[str, Shared]]:
    """Stack the different data sets of the jobs, and make one lane for each chain of each job.

    Returns
    -------
    shared : Shared
        Training and validation rows of the U different data sets, x (U, N, ...) and y (U, N, ...).
    lane : Lane
        Keys, data-set indices and numbers of the L = jobs x chains lanes. Lanes of one job follow each other.
    test : Shared or None
        The test rows.
    apart : dict
        Shifted rows by name, and out-of-distribution rows by name with the prefix ``OOD``.
    """
    datasets = {job.dataset.checksum: job.dataset for job in jobs}
    unique = list(datasets.values())
    index = {checksum: i for i, checksum in enumerate(datasets)}

    def stack(rows: Sequence[Any]) -> Shared:
        return Shared(np.stack([r.x for r in rows]), np.stack([r.y for r in rows]))

    shared = stack([d.train for d in unique])
    if unique[0].validation is not None:
        held = stack([d.validation for d in unique])
        shared = shared._replace(validation=(held.x, held.y))
    test = None if unique[0].test is None else stack([d.test for d in unique])
    apart = {name: stack([d.shifted[name] for d in unique]) for name in unique[0].shifted}
    for name in unique[0].ood:  # the model cannot use their labels, which may be classes that it does not have
        rows = stack([d.ood[name] for d in unique])
        apart[OOD + name] = rows._replace(y=np.zeros_like(rows.y))
    chains = jobs[0].num_chains
    keys = jax.vmap(lambda seed, chain: jax.random.fold_in(jax.random.key(seed), chain))(
        np.repeat(np.array([job.seed for job in jobs], np.uint32), chains), np.tile(np.arange(chains), len(jobs))
    )
    real = np.float64 if jax.config.jax_enable_x64 else np.float32
    numbers = {n: np.repeat(np.array([job.numbers[n] for job in jobs], real), chains) for n in jobs[0].numbers}
    dataset = np.repeat(np.array([index[job.dataset.checksum] for job in jobs], np.int32), chains)
    return shared, Lane(keys, dataset, numbers, None), test, apart
