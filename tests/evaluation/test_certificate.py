"""The criteria of a certificate: their false alarms, their bounds, and which of them finds which wrong sampler."""

import numpy as np
import pytest
import wrong_draws

from bdlbench.errors import ConfigError
from bdlbench.evaluation import certificate
from bdlbench.evaluation.certificate import Thresholds

MIXING = {"rhat_max", "ess_bulk_min", "ess_tail_min"}
FOUND_BY = {
    "noise without sqrt 2": {"permutation_p", "log_sd_between_samplers"},
    "N/B missing": {"permutation_p", "log_sd_between_samplers"},
    "half the temperature": {"permutation_p", "log_sd_between_samplers"},
    "one chain at half the temperature": {"log_sd_between_chains"},
    "one chain stuck": {"rhat_max", "ess_bulk_min", "shift_between_chains", "log_sd_between_chains"},
    "mean-field posterior": {"permutation_p", "log_sd_between_samplers"},
    "sd 10 % too large": {"permutation_p"},  # a log sd off by .095 is within tau = .1: nothing finer is claimed
    "mean .3 sd off": {"permutation_p", "shift_between_samplers"},
    "chains frozen in modes": {*MIXING, "shift_between_samplers", "shift_between_chains"},
    "one mode lost": {"permutation_p", "shift_between_samplers", "log_sd_between_samplers"},
}
"""What must fail for each fault; other criteria may."""


def certify(chains, runs, **changes):
    energies = np.random.default_rng(0).normal(size=chains.shape[:2])
    return certificate.certify(chains, runs, Thresholds(**changes), num_diverging=0, energies=energies)


def runs_of(rng, sampler, num_draws=300):
    return [sampler(rng, num_draws) for _ in range(7)]


def test_exact_draws_are_certified():
    """8 x 2,000 independent draws against 7 x 300: about one seed in 1,000 fails the permutation test, by its level."""
    rng = np.random.default_rng(0)
    found = certify(wrong_draws.exact(rng, 8, 2000), runs_of(rng, wrong_draws.exact))
    assert all(one.passed for one in found), found
    assert len({one.name for one in found}) == 13


@pytest.mark.slow
@pytest.mark.parametrize("name", list(wrong_draws.WRONG))
def test_no_wrong_draws_are_certified(name):
    """Every criterion that must find this fault does, and where chains mix in the wrong law their mixing is no witness."""
    rng = np.random.default_rng(1)
    # With 300 draws a run, 10 % of the sd escapes one seed in 40; with 600 the wholes of the two kinds lie apart.
    found = certify(wrong_draws.WRONG[name](rng, 1000), runs_of(rng, wrong_draws.truth(name), 600))
    failed = {one.name for one in found if not one.passed}
    assert failed >= FOUND_BY[name]
    if not name.startswith(("one chain", "chains")):
        assert not failed & MIXING
    if name in ("one chain stuck", "one chain at half the temperature"):
        assert {one.chain for one in found if one.name == "log_sd_between_chains"} == {3}


def test_two_samplers_that_share_a_failure_agree():
    """What no comparison of two samplers can see: both lost the same mode. The second has to start from the prior."""
    rng = np.random.default_rng(2)
    found = certify(wrong_draws.WRONG["one mode lost"](rng, 1000), runs_of(rng, wrong_draws.exact), tau=0.2)
    assert all(one.passed for one in found)


def test_few_chains_divergences_and_low_energy_information_fail():
    """Each counts alone. An energy that moves like a random walk has an E-BFMI of about 0."""
    rng = np.random.default_rng(3)
    chains, runs = wrong_draws.exact(rng, 7, 100), [wrong_draws.exact(rng, 100) for _ in range(6)]
    walk = rng.normal(size=(7, 1000)).cumsum(axis=1)
    found = certificate.certify(chains, runs, Thresholds(), num_diverging=2, energies=walk)
    failed = {one.name: one.figure for one in found if not one.passed}
    assert {"num_chains", "num_runs", "num_particles", "num_diverging", "e_bfmi_min", "ess_bulk_min"} <= set(failed)
    assert (failed["num_chains"], failed["num_runs"], failed["num_particles"]) == (7, 6, 600)
    assert failed["num_diverging"] == 2
    enough = Thresholds(num_chains=7, num_runs=6, num_particles=600)
    met = certificate.certify(chains, runs, enough, num_diverging=0, energies=walk)
    assert {one.name for one in met if one.passed} >= {"num_chains", "num_runs", "num_particles", "num_diverging"}
    rhat = certificate.mixing(
        chains + 0.05 * np.arange(7)[:, None, None], Thresholds(), num_diverging=0, energies=walk
    )[0]
    assert 1.01 < rhat.figure < 2 and not rhat.passed
    still = chains.copy()
    still[..., 4] = 1.0
    assert certificate.mixing(still, Thresholds(), num_diverging=0, energies=walk)[0].figure == np.inf


def test_permutations_are_those_written_out_and_p_is_uniform():
    """Against a loop over all arrangements. Exact wholes: 200 p-values below .2 are Binomial(200, .2), five sd."""
    rng = np.random.default_rng(4)
    chains, runs = rng.normal(size=(4, 6, 2)), [rng.normal(size=(5, 2)) + 0.5 for _ in range(3)]
    sd = chains.reshape(-1, 2).std(axis=0, ddof=1)
    wholes = [one / sd for one in (*chains, *runs)]
    mean = np.array([[np.linalg.norm(a[:, None] - b, axis=-1).mean() for b in wholes] for a in wholes])

    def statistic(first):
        second = [i for i in range(7) if i not in first]

        def within(group):
            return np.mean([mean[i, j] for i in group for j in group if i != j])

        return 2 * np.mean([mean[i, j] for i in first for j in second]) - within(first) - within(second)

    import itertools

    values = np.array([statistic(first) for first in itertools.combinations(range(7), 4)])
    found = certificate.difference(chains, runs, level=0.05)
    assert found.figure == pytest.approx(np.mean(values >= values[0] - 1e-5), abs=1e-12)
    p = [
        certificate.difference(rng.normal(size=(4, 6, 2)), list(rng.normal(size=(4, 6, 2))), level=0.05).figure
        for _ in range(200)
    ]
    assert abs(np.mean(np.array(p) <= 0.2) - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 200)
    with pytest.raises(ConfigError, match="add runs"):
        certificate.difference(chains, runs, level=0.001)


def test_many_arrangements_are_drawn_at_random():
    """Twenty against twenty have 10^11: 50,000 of them still find a shift, and none where there is none."""
    rng = np.random.default_rng(5)
    wholes = rng.normal(size=(40, 30, 2))
    assert certificate.difference(wholes[:20], list(wholes[20:]), level=1e-4).passed
    assert certificate.difference(wholes[:20] + 0.5, list(wholes[20:]), level=1e-3).figure == pytest.approx(1 / 50_000)


@pytest.mark.parametrize("rank", [1, 10])
def test_bounds_cover(rank):
    """True differences of .1 in every coordinate, noise of .05 of rank 1 or 10: at least 95 % of bounds are above them.

    100 repetitions, five binomial standard errors below 95 %: 84 %. The bound is of use: its mean is below .1 + 3 x .05.
    """
    rng = np.random.default_rng(6)
    root = 0.05 * (np.ones((1, 10)) if rank == 1 else np.eye(10))
    bounds = []
    for _ in range(100):
        sample = rng.normal(size=(14, rank)) @ root
        residuals = (sample - sample.mean(0)) / np.sqrt(13)
        bounds.append(certificate.upper_bound(0.1 + (rng.normal(size=rank) @ root), residuals, 13))
    assert np.mean(np.array(bounds) >= 0.1) > 0.84
    assert np.mean(bounds) < 0.25


def test_bounds_without_noise_are_the_distance_itself():
    """And infinite noise ends at the largest value that is reported."""
    assert certificate.upper_bound(np.array([0.3, 0.4]), np.zeros((3, 2)), 2) == pytest.approx(0.5 / np.sqrt(2))
    assert certificate.upper_bound(np.array([1e6]), np.ones((3, 1)), 2) == 100


def test_a_single_particle_run_is_refused():
    """A run of one draw has no spread, and shapes are checked."""
    rng = np.random.default_rng(7)
    chains = wrong_draws.exact(rng, 4, 10)
    with pytest.raises(ValueError, match="two draws or more"):
        certificate.equivalence(chains, [wrong_draws.exact(rng, 1)] * 3, tau=0.1)
    with pytest.raises(ValueError, match="must be"):
        certificate.equivalence(chains, [chains], tau=0.1)
    with pytest.raises(FloatingPointError):
        certificate.equivalence(chains * np.nan, [chains[0]] * 2, tau=0.1)
