"""What is said of a run's mixing, and beside which draws its statistics stand, from draws that are written by hand."""

import numpy as np
import pytest

from bdlbench.data.dataset import make_dataset
from bdlbench.runs.look import Look
from bdlbench.runs.storage import Storage
from bdlbench.store import Store

CHAINS, DRAWS, ROWS = 2, 50, 3


def one_look(population=1, **predictions):
    """A data set of three test rows, and a look of draws with these predictions at them."""
    rows = np.arange(4.0)[:, None], np.arange(4.0)
    dataset = make_dataset(
        name="rows", task="regression", train=rows, test=(rows[0][:ROWS], rows[1][:ROWS]), standardize=False
    )
    good = np.ones((CHAINS * population, DRAWS), bool)
    stats = {"energy": np.arange(CHAINS * DRAWS, dtype=np.float64).reshape(CHAINS, DRAWS)}
    return dataset, Look(0, population, good, good, frozenset(), {}, stats, {"": predictions})


@pytest.mark.parametrize("worse", ["log_lik", "mean"])
def test_the_worst_of_both_functions_is_reported(worse, tmp_path):
    """Chains that stand apart in the likelihood or in the mean alone: the largest R-hat and the smallest ESS say so."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(CHAINS, DRAWS, ROWS)) for name in ("log_lik", "mean")}
    values[worse][:, :, 1] += 5 * np.arange(CHAINS)[:, None]
    dataset, look = one_look(**values)
    with Store(tmp_path / "store").writer("one", {}) as writer:
        storage = Storage(writer, dataset, DRAWS, ROWS, {})
        storage.write(look)
        found = storage.mixing([0, 1], DRAWS)
        alone = storage.mixing([0], DRAWS)
    assert found["rhat_max"] > 1.5 and found["ess_bulk_min"] < 10 < found["ess_bulk_median"]
    assert alone["rhat_max"] is None and alone["ess_bulk_min"] > 10


def test_each_particle_has_the_statistics_of_its_own_chain(tmp_path):
    """Row c P + p of the store is particle p of chain c, and so are its energies."""
    particles = 3
    values = {"log_lik": np.zeros((CHAINS * particles, DRAWS, ROWS))}
    dataset, look = one_look(particles, **values)
    with Store(tmp_path / "store").writer("one", {}) as writer:
        storage = Storage(writer, dataset, DRAWS, ROWS, {})
        storage.write(look)
        energy = writer.read_columns("sample_stats", "energy", 0, 1)[..., 0]
    np.testing.assert_array_equal(energy, look.stats["energy"][np.arange(CHAINS * particles) // particles])
