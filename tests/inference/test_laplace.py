"""Law 4 for Laplace: exact on linear models; elsewhere the expected Hessian, whatever the likelihood."""

import functools
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from known_posteriors import gaussian, lanes_of, moments, program, rows, sample, stage
from laws import Law, Mutant, PresetLaws, mean_field, mode, posterior, schedule
from mutation import mutate

from bdlbench.inference import curvature
from bdlbench.inference import laplace as module
from bdlbench.inference.laplace import laplace
from bdlbench.inference.point import maximum_a_posteriori
from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import MLP
from bdlbench.runs import configuration
from bdlbench.runs.job import check_job, make_job
from bdlbench.sampling.predictions import linearised
from bdlbench.types import ConfigError, Data, Schedule

READ = Schedule(1, 0, 100, 0)
NOISE = functools.partial(dist.LogNormal, -1.0, 0.7)
LIKELIHOODS = {
    "fixed": lambda: likelihoods.gaussian_fixed("regression", 1, sigma=0.3),
    "learned": lambda: likelihoods.gaussian("regression", 1, noise=NOISE()),
    "heteroscedastic": lambda: likelihoods.heteroscedastic("regression", 1, min_scale=0.01),
    "categorical": lambda: likelihoods.categorical("classification", 3),
}


def problem(likelihood, depth=1, num_rows=23, temperature=1.0):
    """The target and data of a network. The number of rows, 23, is not a multiple of any block size."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.standard_normal((num_rows, 2)))
    y = jnp.asarray(rng.integers(0, 3, num_rows) if likelihood == "categorical" else rng.standard_normal(num_rows))

    def model(x, y=None):
        network = functools.partial(MLP, width=3, depth=depth, activation="tanh")
        prior = priors.normal(weight_scale=1.5, bias_scale=0.8)
        bnn.bnn(x, y, network=network, prior=prior, likelihood=LIKELIHOODS[likelihood]())

    return make_target(model, x, y, temperature), Data(x, y, num_rows)


def finalized(target, data, theta, structure="full", evidence=False, factory=laplace):
    """The state, and the precision over the free coordinates that it stands for."""
    method = factory(target, READ, structure=structure, evidence=evidence)
    start = jax.jit(lambda theta: method.init(jax.random.key(0), theta, data))(theta)
    state, info = jax.jit(lambda start: method.finalize(jax.random.key(0), start, data))(start)
    chol = np.eye(len(state.scale)) if state.chol is None else np.asarray(state.chol)
    precision = chol @ chol.T / np.asarray(state.scale)[:, None] / np.asarray(state.scale)
    return state, precision, float(info["num_grads"]), method


@functools.partial(jax.jit, static_argnums=0)
def expected_hessian(target, data, theta):
    """E over y ~ p(y | x, theta) of the Hessian of -log p(y | x, .), by exact quadrature: log p is a quadratic in y."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    p = target.predictive(theta, data.x)
    total = 0.0
    if data.y.dtype == jnp.int64:
        for k in range(3):
            labels = jnp.full_like(data.y, k)
            hess = jax.jacfwd(jax.jacrev(lambda t: target.terms(t, data._replace(y=labels)).log_lik))(theta)  # noqa: B023
            total = total - (p.probs[:, k, None, None] * hess).sum(0)
        return total
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        y = p.mean + node * jnp.sqrt(p.variance)
        total = total - weight * jax.hessian(lambda t: target.terms(t, data._replace(y=y)).log_lik.sum())(theta)  # noqa: B023
    return total


@functools.partial(jax.jit, static_argnums=0)
def prior_hessian(target, data, theta):
    """Hessian of -(log prior / T + log Jacobian)."""

    def energy(theta):
        terms = target.terms(theta, data)
        return -(terms.log_prior / target.temperature + terms.log_jacobian)

    return jax.hessian(energy)(theta)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("likelihood", ["learned", "heteroscedastic", "categorical"])
def test_the_precision_is_the_expected_hessian(likelihood, monkeypatch):
    """The Fisher information is E[Hessian] whatever the parameters: equal to rounding, in blocks of any length."""
    monkeypatch.setattr(curvature, "BLOCK_BYTES", 4 * 2 * 20 * 5)
    target, data = problem(likelihood, temperature=2.0)
    theta = 0.5 * jax.random.normal(jax.random.key(1), (target.dim,))
    fisher = 0.5 * expected_hessian(target, data, theta)
    prior = prior_hessian(target, data, theta)
    state, precision, grads, method = finalized(target, data, theta)
    np.testing.assert_allclose(precision, fisher + prior, rtol=1e-9, atol=1e-9 * np.abs(fisher).max())
    np.testing.assert_array_equal(method.anchor(state), theta)
    assert grads == (3 if likelihood == "categorical" else 2)
    _, diagonal, _, _ = finalized(target, data, theta, "diagonal")
    np.testing.assert_allclose(np.diag(diagonal), np.diag(fisher + prior), rtol=1e-9)
    last = np.flatnonzero(target.last_layer())
    assert 0 < len(last) < target.dim
    _, block, _, _ = finalized(target, data, theta, "last_layer")
    np.testing.assert_allclose(block, (fisher + prior)[np.ix_(last, last)], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_laplace_is_exact_on_a_linear_network(temperature):
    """Closed-form precision to rounding; the tempered posterior of a linear model has T times the covariance."""
    target, data = problem("fixed", depth=0, temperature=temperature)
    design = np.column_stack([np.ones(data.size), data.x])  # theta: bias, then kernel
    wanted = (design.T @ design / 0.3**2 + np.diag([0.8**-2, 1.5**-2, 1.5**-2])) / temperature
    for structure in ("full", "last_layer"):
        _, precision, _, _ = finalized(target, data, jnp.zeros(3), structure)
        np.testing.assert_allclose(precision, wanted, rtol=1e-10)
    _, precision, _, _ = finalized(target, data, jnp.zeros(3), "diagonal")
    np.testing.assert_allclose(precision, np.diag(np.diag(wanted)), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_draws_have_the_moments_of_a_gaussian(structure):
    """After a MAP stage that has converged, 1,000 draws of each lane have the right moments."""
    known = gaussian(10, 100)
    # Mean loss: curvatures are the precision's eigenvalues (1 to 100) over N = 10 rows; exp(-1500 * 0.19 / 10) = 4e-13.
    fit = stage("map", maximum_a_posteriori, Schedule(64, 1500, 0, 0), optimizer=optax.sgd(0.19))
    read = stage("laplace", laplace, Schedule(64, 0, 1000, 0), structure=structure, evidence=False)
    drawn = sample(program((fit, read)), rows(known), lanes_of(64))
    cov = known.cov if structure == "full" else np.diag(1 / np.diag(known.precision))
    verdict = moments(drawn.draws, known.mean, cov)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict
    assert all(np.isfinite(block.anchor).all() for block in drawn.blocks if block.draws is not None)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("likelihood", ["learned", "categorical"])
def test_evidence_is_stationary_where_it_stops(likelihood):
    """Central differences of the log evidence of (log delta, log tau) vanish: below 1e-5, against slopes of order 1."""
    target, data = problem(likelihood)
    theta = 0.5 * jax.random.normal(jax.random.key(1), (target.dim,))
    state, precision, _, _ = finalized(target, data, theta, evidence=True)
    noise = likelihood == "learned"
    dim = target.dim - noise  # the noise is the last coordinate
    fisher = np.asarray(expected_hessian(target, data, theta))[:dim, :dim]
    prior = np.asarray(prior_hessian(target, data, theta))[:dim, :dim]
    squares = 0.0
    if noise:
        p = target.predictive(theta, data.x)
        squares = float((((data.y - p.mean) ** 2) / p.variance).sum())
    weights = np.asarray(theta)[:dim]

    def log_evidence(delta, tau):
        fit = 0.5 * data.size * np.log(tau) - 0.5 * tau * squares
        shrink = 0.5 * dim * np.log(delta) - 0.5 * delta * weights @ prior @ weights
        return fit + shrink - 0.5 * np.linalg.slogdet(tau * fisher + delta * prior)[1]

    tau = float(np.exp(2 * (theta[-1] - state.theta[-1]))) if noise else 1.0
    delta = (precision[:dim, :dim] - tau * fisher)[0, 0] / prior[0, 0]
    np.testing.assert_allclose(precision[:dim, :dim], tau * fisher + delta * prior, rtol=1e-7, atol=1e-7)
    up, down = np.exp(1e-4), np.exp(-1e-4)
    assert abs(log_evidence(delta * up, tau) - log_evidence(delta * down, tau)) / 2e-4 < 1e-5
    assert abs(log_evidence(1.1 * delta, tau) - log_evidence(delta, tau)) > 1e-4
    if noise:
        assert abs(log_evidence(delta, tau * up) - log_evidence(delta, tau * down)) / 2e-4 < 1e-5
        np.testing.assert_array_equal(state.theta[:dim], theta[:dim])
    else:
        np.testing.assert_array_equal(state.theta, theta)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "old", "new", "likelihood"),
    [
        ("curvature", "2.0**0.5", "1.0", "learned"),
        ("curvature", "- probs[:, None] * jnp.sqrt(probs)[None]", "", "categorical"),
        ("curvature", "* fresh[:, None, None]", "", "fixed"),
        ("laplace", "precision = likelihood + prior", "precision = likelihood", "fixed"),
        ("laplace", "data, diagonal) / target.temperature", "data, diagonal)", "fixed"),
    ],
)
def test_mutants_are_noticed(name, old, new, likelihood, monkeypatch):
    """Each changed expression makes the precision differ from the expected Hessian."""
    mutant = mutate(f"bdlbench.inference.{name}", old, new)
    target, data = problem(likelihood, temperature=2.0)
    theta = 0.5 * jax.random.normal(jax.random.key(1), (target.dim,))
    wanted = expected_hessian(target, data, theta) / 2 + prior_hessian(target, data, theta)
    # Five rows a block, the last of which overlaps the one before.
    patched = mutant if name == "curvature" else curvature
    monkeypatch.setattr(patched, "BLOCK_BYTES", 4 * 2 * target.dim * 5)
    if name == "curvature":
        monkeypatch.setattr(module, "fisher_information", mutant.fisher_information)
    _, precision, _, _ = finalized(target, data, theta, factory=laplace if name == "curvature" else mutant.laplace)
    assert not np.allclose(precision, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


def test_a_matrix_too_large_is_named_with_its_size():
    def checked(inference):
        options = ["data=diabetes", f"inference={inference}", "network.width=2000"]
        check_job(make_job(*configuration.compose(options)))

    with pytest.raises(ConfigError, match=r"24002 x 24002 matrix of 2\.15 GiB"):
        checked("laplace")
    checked("laplace_lastlayer")


def test_what_laplace_refuses():
    target, data = problem("fixed")
    with pytest.raises(ConfigError, match="num_warmup"):
        laplace(target, Schedule(1, 10, 10, 0), structure="full", evidence=False)
    with pytest.raises(ConfigError, match="batch_size=32 does not fit laplace"):
        laplace(target, READ._replace(batch_size=32), structure="full", evidence=False)
    with pytest.raises(ConfigError, match="temperature=1"):
        laplace(target._replace(temperature=0.5), READ, structure="full", evidence=True)

    def model(x, y=None):
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.StudentT(3.0, rate * x[:, 0]), obs=y)

    heavy = make_target(model, data.x, data.y)
    with pytest.raises(ConfigError, match="StudentT"):
        laplace(heavy, READ, structure="full", evidence=False).init(jax.random.key(0), jnp.zeros(1), data)
    with pytest.raises(ConfigError, match="no deterministic site 'f'"):
        laplace(heavy, READ, structure="last_layer", evidence=False)


PUBLISHED = Path(__file__).parent / "laplace_torch.npz"
"""What laplace-torch 0.3 (Daxberger et al. 2021) finds for the two problems below, and the problems that it was given.

Where ``BDLBENCH_PEER_PYTHON`` names an interpreter that has torch and laplace-torch, the test runs it again, by
``benchmarks/laplace_torch.py``, and replaces its part of the file.
"""


def found_by_laplace_torch(likelihood, asked, folder):
    """The arrays that laplace-torch gives for the problem ``asked``: those of the file, which must be of this problem."""
    known = dict(np.load(PUBLISHED)) if PUBLISHED.exists() else {}
    if python := os.environ.get("BDLBENCH_PEER_PYTHON"):
        np.savez(folder / "problem.npz", **asked)
        script = Path(__file__).parents[2] / "benchmarks" / "laplace_torch.py"
        plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        subprocess.run([python, script, folder / "problem.npz", folder / "found.npz"], check=True, env=plain)
        known = {name: values for name, values in known.items() if not name.startswith(f"{likelihood}/")}
        for part, arrays in (("problem", asked), ("found", np.load(folder / "found.npz"))):
            known |= {f"{likelihood}/{part}/{name}": np.asarray(values) for name, values in arrays.items()}
        np.savez_compressed(PUBLISHED, **known)
    for name, values in asked.items():
        np.testing.assert_allclose(values, known[f"{likelihood}/problem/{name}"], rtol=1e-12, atol=1e-12, err_msg=name)
    start = f"{likelihood}/found/"
    return {name.removeprefix(start): values for name, values in known.items() if name.startswith(start)}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("likelihood", ["fixed", "categorical"])
def test_agreement_with_laplace_torch(likelihood, tmp_path):
    """Precision, linearised variance and log evidence around the same weights, rows, prior and noise.

    Ours is in double precision and theirs has single-precision steps, each rounding by 2^-24. Scaled to a unit diagonal
    a precision is off by a few of them, its inverse, in relative terms, by its condition number (10 to 1,000) times
    that, and a log evidence by as much: at most eight roundings times the condition.
    """
    target, data = problem(likelihood)
    theta = 0.5 * jax.random.normal(jax.random.key(1), (target.dim,))
    sites = {name: np.asarray(value) for name, value in target.constrain(theta).items()}
    x_test = np.random.default_rng(5).standard_normal((7, 2))
    asked = {"x": data.x, "y": data.y, "x_test": x_test, "sigma": 0.3 if likelihood == "fixed" else np.nan}
    # Their order is weight (out, in), then bias; ours is bias, then kernel (in, out).
    order, start = [], 0
    for index, name in enumerate(("network.hidden.0", "network.output")):
        kernel, bias = sites[f"{name}.kernel"], sites[f"{name}.bias"]
        asked |= {f"kernel{index}": kernel, f"bias{index}": bias, f"precision{index}": [1.5**-2, 0.8**-2]}
        at = start + bias.size + np.arange(kernel.size).reshape(kernel.shape)
        order += [*at.T.reshape(-1), *range(start, start + bias.size)]
        start += bias.size + kernel.size
    theirs = found_by_laplace_torch(likelihood, asked, tmp_path)

    @jax.jit
    @jax.vmap
    def outputs(moved):
        p = linearised(target, theta, moved, jnp.asarray(x_test))
        return p.mean[:, None] if likelihood == "fixed" else p.logits

    log_lik = float(target.terms(theta, data).log_lik.sum())
    prior = np.diag(np.asarray(prior_hessian(target, data, theta)))
    last = np.flatnonzero(target.last_layer())
    for structure in ("full", "diagonal", "last_layer"):
        free = last if structure == "last_layer" else np.arange(target.dim)
        state, precision, _, _ = finalized(target, data, theta, structure)
        place = [int(np.flatnonzero(free == i)[0]) for i in order if i in free]
        ours = np.diag(precision)[place] if structure == "diagonal" else precision[np.ix_(place, place)]
        wanted = theirs[f"{structure}_precision"]
        unit = wanted if structure == "diagonal" else np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
        rounding = 8 * 2.0**-24
        np.testing.assert_allclose(ours / unit, wanted / unit, rtol=0, atol=rounding, err_msg=structure)
        limit = rounding * (1.0 if structure == "diagonal" else np.linalg.cond(wanted / unit))
        assert limit < 1e-3, "tight enough to tell a factor from rounding"
        # One draw a column of a root of Sigma: the linearised outputs' covariance is the sum of their squares.
        root = (
            np.diag(state.scale)
            if state.chol is None
            else np.linalg.inv(state.chol).T * np.asarray(state.scale)[:, None]
        )
        away = np.zeros((len(free), target.dim))
        away[:, free] = root.T
        moved = outputs(theta + away) - outputs(theta[None])
        variance = np.einsum("rnk,rnl->nkl", moved, moved)
        wanted = theirs[f"{structure}_variance"]
        np.testing.assert_allclose(variance, wanted, rtol=0, atol=limit * np.abs(wanted).max(), err_msg=structure)
        log_prior = 0.5 * (np.log(prior[free]).sum() - prior[free] @ np.asarray(theta)[free] ** 2)
        evidence = log_lik + log_prior - 0.5 * np.linalg.slogdet(precision)[1]
        np.testing.assert_allclose(evidence, theirs[f"{structure}_evidence"], rtol=limit, err_msg=structure)


# ---- the presets of this family


EXPECTED = "test_the_precision_is_the_expected_hessian"
TRAINED = (schedule(0, 300, 0), mode(150))
ROWS = "cannot be evaluated on one row"
STUDENT = "this model's y is StudentT"


class TestLaws(PresetLaws):
    """Laplace is exact on a linear network. Its diagonal form has variances 1 / diag(precision)."""

    laws = {
        "laplace": Law("exact on a linear network", EXPECTED, 64, TRAINED, posterior),
        "laplace_lastlayer": Law(
            "exact on a linear network, which is all last layer", EXPECTED, 64, TRAINED, posterior
        ),
        "laplace_diag": Law("variances 1 / diag(precision)", EXPECTED, 64, TRAINED, mean_field),
    }
    mutants = {"laplace": Mutant("precision = likelihood + prior", "precision = 1.2 * likelihood + prior")}
    everyday = ("laplace",)
    refuses = {
        **{("laplace_lastlayer", task): "no deterministic site 'f'" for task in ("eight schools", "robust regression")},
        **{(name, "eight schools"): ROWS for name in ("laplace", "laplace_diag")},
        **{(name, "robust regression"): STUDENT for name in ("laplace", "laplace_diag")},
    }
