"""Law 3: SGLD against the law of its own recursion, not against the target's with a wide tolerance; law 5 on it.

For theta' = theta + eps g + sqrt(2 eps) xi, precision A and gradient noise of variance V, a stationary chain has
Var = (2 eps + eps^2 V) / (2 eps A - eps^2 A^2), that is (1/A) (1 + eps V / 2) / (1 - eps A / 2).
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from known_posteriors import (
    PRIOR_SCALE,
    Gaussian,
    Verdict,
    gaussian,
    lanes_of,
    largest_z,
    moments,
    number,
    program,
    regression,
    rows,
    sample,
    stage,
)
from mutation import mutate

from bdlbench.inference.sgld import sgld
from bdlbench.sampling import programs
from bdlbench.types import Schedule, Target

LANES = 64
LOCATION_SCALE = 0.3
PLAIN = {"decay": 0.0, "decay_steps": 1.0}


def sgld_stage(schedule, factory=sgld, **options):
    return stage("sgld", factory, schedule, **{"step_size": number("step_size"), **PLAIN, **options})


# ---- the checks, as functions of the factory so that mutants can be put through them


def check_full_batch(factory=sgld, seed=0):
    """Full data, D = 5, condition 20: Sigma = F Sigma F' + 2 eps I with F = I - eps A, diagonal in A's eigenvectors."""
    problem, eps = gaussian(5, 20), 0.02
    values, vectors = np.linalg.eigh(problem.precision)
    law = vectors @ np.diag(1 / (values * (1 - eps * values / 2))) @ vectors.T
    schedule = Schedule(1, 1000, 500, 50)
    drawn = sample(program((sgld_stage(schedule, factory),)), rows(problem), lanes_of(LANES, seed, step_size=eps))
    return moments(drawn.draws, problem.mean, law)


def location(x, y=None):
    """y ~ N(theta, 1): the gradient's noise on a batch is the same at every theta."""
    theta = numpyro.sample("theta", dist.Normal(0.0, LOCATION_SCALE))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(theta + 0.0 * x[:, 0], 1.0), obs=y)


def location_rows(num_rows=24):
    """Rows of :func:`location`: y of variance 4, posterior precision A and mean, variance of y."""
    y = 1.0 + 2.0 * np.random.default_rng(8).standard_normal(num_rows)
    y = y.astype(np.float32)
    exact = y.astype(np.float64)
    precision = num_rows + LOCATION_SCALE**-2
    problem = Gaussian(
        np.ones((num_rows, 1), np.float32), y, np.array([exact.sum() / precision]), np.array([[precision]])
    )
    return problem, exact.var()


def check_location(batching, factory=sgld, seed=0):
    """Gradient noise alone: iid batches at every step, permuted ones at the ends of epochs.

    On B rows drawn with replacement V = N^2 var(y) / B; within an epoch V has the factor
    (N - B) / (N - 1) and two batches of an epoch have the correlation -1 / (n_b - 1).
    """
    problem, spread = location_rows()
    n, b, eps = len(problem.y), 4, 0.015
    a_, v = problem.precision[0, 0], n**2 * spread / b
    if batching == "iid":
        law = (1 / a_) * (1 + eps * v / 2) / (1 - eps * a_ / 2)
        schedule = Schedule(1, 500, 400, 10, b, "iid")
    else:
        v *= (n - b) / (n - 1)
        per_epoch, a = n // b, 1 - eps * a_
        s1, s2 = (a ** np.arange(per_epoch)).sum(), (a ** (2 * np.arange(per_epoch))).sum()
        noise = eps**2 * v * (s2 - (s1**2 - s2) / (per_epoch - 1))
        law = (2 * eps * s2 + noise) / (1 - a ** (2 * per_epoch))
        # Draws fall on the ends of epochs: warm-up and thinning are whole ones.
        schedule = Schedule(1, 100 * per_epoch, 400, 2 * per_epoch, b, "epoch")
    lane = lanes_of(LANES, seed, step_size=eps)
    drawn = sample(program((sgld_stage(schedule, factory),), location), rows(problem), lane)
    return moments(drawn.draws, problem.mean, np.array([[law]]))


def check_regression(factory=sgld, seed=0):
    """y = theta x on iid batches: the batch's slope A_b varies, and eps^2 Var(A_b) leaves the denominator.

    delta' = (1 - eps A_b) delta + eps g_b + sqrt(2 eps) xi with delta = theta - mean and E g_b = 0, so
    Var = (2 eps + eps^2 Var g_b) / (2 eps A - eps^2 A^2 - eps^2 Var A_b); both variances are N^2 / B those of a row.
    """
    rng = np.random.default_rng(9)
    x = rng.standard_normal((20, 1)).astype(np.float32)
    y = (x[:, 0] + rng.standard_normal(20)).astype(np.float32)
    n, b, eps = 20, 2, 0.015
    x64, y64 = x[:, 0].astype(np.float64), y.astype(np.float64)
    precision = x64 @ x64 + PRIOR_SCALE**-2
    mean = x64 @ y64 / precision
    v, slopes = ((n**2 / b) * a.var() for a in (x64 * (y64 - x64 * mean), x64**2))
    law = (2 * eps + eps**2 * v) / (2 * eps * precision - eps**2 * precision**2 - eps**2 * slopes)
    problem = Gaussian(x, y, np.array([mean]), np.array([[precision]]))
    schedule = Schedule(1, 500, 600, 15, b, "iid")
    lane = lanes_of(LANES, seed, step_size=eps)
    drawn = sample(program((sgld_stage(schedule, factory),), regression), rows(problem), lane)
    return moments(drawn.draws, problem.mean, np.array([[law]]))


def check_decay(factory=sgld):
    """Falling steps from the prior: Var_t = (1 - eps_t A)^2 Var_(t-1) + 2 eps_t, never stationary, exact at each t.

    With M draws along the path, sums of theta_t^2 / Var_t over a lane have mean M.
    """
    problem, _ = location_rows()
    precision, prior = problem.precision[0, 0], LOCATION_SCALE**2
    options = {"decay": 0.6, "decay_steps": 20.0}
    schedule = Schedule(1, 0, 400, 1)
    lane = lanes_of(1024, step_size=0.02)
    drawn = sample(program((sgld_stage(schedule, factory, **options),), location), rows(problem), lane).draws[..., 0]
    offset, variance, expected, variances = -problem.mean[0], prior, [], []
    for t in range(400):
        eps = 0.02 * (1 + t / 20.0) ** -0.6
        offset, variance = (1 - eps * precision) * offset, (1 - eps * precision) ** 2 * variance + 2 * eps
        expected.append(problem.mean[0] + offset)
        variances.append(variance)
    white = (drawn - np.array(expected)) / np.sqrt(variances)
    z, most = largest_z(np.stack([white.mean(1), (white**2).mean(1)], 1), np.array([0.0, 1.0]))
    return Verdict(z, most, float(white.mean(1).std() / 32))


def check_tempered(factory=sgld, seed=0):
    """T = 2 halves the precision, mean unchanged: eps A / T in place of eps A."""
    problem, eps, temperature = gaussian(3, 5), 0.1, 2.0
    values, vectors = np.linalg.eigh(problem.precision / temperature)
    law = vectors @ np.diag(1 / (values * (1 - eps * values / 2))) @ vectors.T
    lane = lanes_of(LANES, seed, step_size=eps, temperature=temperature)
    drawn = sample(program((sgld_stage(Schedule(1, 500, 400, 20), factory),)), rows(problem), lane)
    return moments(drawn.draws, problem.mean, law)


CHECKS = {
    "full batch": check_full_batch,
    "iid batches": lambda factory=sgld: check_location("iid", factory),
    "epochs": lambda factory=sgld: check_location("epoch", factory),
    "regression": check_regression,
    "decay": check_decay,
    "tempered": check_tempered,
}


@pytest.mark.parametrize("name", CHECKS)
def test_sgld_obeys_its_own_law(name):
    """Each is passed once in 10^6 runs too few; the draws are enough to tell a bias of some hundredths."""
    verdict = CHECKS[name]()
    assert verdict.passes, verdict


def test_the_bias_of_a_large_step_is_seen():
    """The law of the target itself is refused where the discretised one is kept: the test has power."""
    problem, eps = gaussian(5, 20), 0.02
    drawn = sample(program((sgld_stage(Schedule(1, 1000, 400, 25)),)), rows(problem), lanes_of(LANES, step_size=eps))
    assert not moments(drawn.draws, problem.mean, problem.cov).passes


# ---- law 5


MUTANTS = {
    "loses sqrt 2": ("jnp.sqrt(2 * eps)", "jnp.sqrt(eps)", "full batch"),
    "doubles the drift": ("eps * grad +", "2 * eps * grad +", "full batch"),
    "halves the drift (Welling & Teh's eps)": ("eps * grad +", "0.5 * eps * grad +", "full batch"),
    "never decays": ("** -decay", "** (0 * decay)", "decay"),
    "reuses one key": ("_apart(grad, key)", "_apart(grad, jax.random.key(0))", "full batch"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_sampler_is_caught(name):
    """A wrong step fails the check that a right one passes."""
    old, new, check = MUTANTS[name]
    verdict = CHECKS[check](mutate("bdlbench.inference.sgld", old, new, within="sgld").sgld)
    assert not verdict.passes, verdict


TARGET_MUTANTS = {
    "drops N / B": ("scale * terms.log_lik.sum()", "terms.log_lik.sum()", "iid batches"),
    "scales the prior as well": (
        "(terms.log_prior + scale * terms.log_lik.sum())",
        "(scale * terms.log_prior + scale * terms.log_lik.sum())",
        "iid batches",
    ),
    "tempers twice": ("/ self.temperature +", "/ self.temperature / self.temperature +", "tempered"),
    "forgets the temperature": ("/ self.temperature +", "+", "tempered"),
}


@pytest.mark.parametrize("name", TARGET_MUTANTS)
def test_a_mutant_target_is_caught(name, monkeypatch):
    """A log density that is scaled or tempered wrongly fails too."""
    old, new, check = TARGET_MUTANTS[name]
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = CHECKS[check]()
    assert not verdict.passes, verdict


def test_reusing_a_step_key_is_caught(monkeypatch):
    """The loop's keys: one key for all steps makes the noise a constant."""
    mutant = mutate("bdlbench.sampling.programs", "random.fold_in(step_key, t)", "random.fold_in(step_key, 0)")
    monkeypatch.setattr(programs.StagePrograms, "_block", mutant.StagePrograms._block)
    assert not check_full_batch().passes


def test_reusing_one_order_of_rows_is_caught(monkeypatch):
    """Epochs that all come in the same order are not the law of reshuffled ones."""
    mutant = mutate("bdlbench.sampling.batches", "rows = permute(jax.random.fold_in(key, epoch)", "rows = permute(key")
    monkeypatch.setattr(programs.batches, "rows_of_step", mutant.rows_of_step)
    assert not check_location("epoch").passes
