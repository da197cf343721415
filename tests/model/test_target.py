"""Models: networks of users, likelihoods, priors, and what a target makes of a NumPyro model."""

import functools
import itertools

import jax
import jax.numpy as jnp
import models_of_users as users
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from flax import linen, nnx
from jax import random
from known_posteriors import gaussian, regression

from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.schools import eight_schools
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import ACTIVATIONS, MLP
from bdlbench.sampling.predictions import class_probabilities, describe
from bdlbench.types import ConfigError, Data

X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2)), jnp.float32)


Y = jnp.sin(X.sum(1))


LABELS = jnp.asarray([0, 1, 2, 0, 1, 2])


PRIOR = priors.fan_in(weight_scale=1.0, bias_scale=1.0)


GAUSSIAN = likelihoods.gaussian_fixed("regression", 1, sigma=0.5)


def network_target(network, likelihood=GAUSSIAN, prior=PRIOR, y=Y, temperature=1.0):
    model = functools.partial(bnn.bnn, network=network, prior=prior, likelihood=likelihood)
    return make_target(model, X, y, temperature)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("width", [1, 5])
def test_mlp_of_any_depth_is_the_written_out_network(depth, width):
    """D counts all weights; outputs and log density agree with NumPy's, layer by layer."""
    target = network_target(functools.partial(MLP, width=width, depth=depth, activation="tanh"))
    sizes = [2, *[width] * depth, 1]
    assert target.dim == sum(a * b + b for a, b in itertools.pairwise(sizes))
    theta = target.sample_prior(jax.random.key(1))
    sites = {name: np.asarray(value, np.float64) for name, value in target.constrain(theta).items()}
    h, log_prior = np.asarray(X, np.float64), 0.0
    for layer in range(depth + 1):
        place = f"network.hidden.{layer}" if layer < depth else "network.output"
        kernel, bias = sites[f"{place}.kernel"], sites[f"{place}.bias"]
        log_prior += scipy.stats.norm.logpdf(kernel, 0, len(kernel) ** -0.5).sum() + scipy.stats.norm.logpdf(bias).sum()
        h = h @ kernel + bias
        h = np.tanh(h) if layer < depth else h
    np.testing.assert_allclose(target.forward(theta, X), h, rtol=1e-4, atol=1e-5)
    terms = target.terms(theta, Data(X, Y, len(Y)))
    np.testing.assert_allclose(terms.log_prior, log_prior, rtol=1e-4)
    np.testing.assert_allclose(terms.log_lik, scipy.stats.norm.logpdf(Y, h[:, 0], 0.5), rtol=1e-3, atol=1e-4)
    assert float(terms.log_jacobian) == 0


@pytest.mark.slow
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_has_finite_gradients(activation):
    """At a draw from the prior."""
    target = network_target(functools.partial(MLP, width=3, depth=2, activation=activation))
    value, grad = target.value_and_grad(target.sample_prior(jax.random.key(0)), Data(X, Y, 6))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.slow
def test_a_linen_module_is_as_good_as_an_nnx_one():
    """The same weights in both give the same outputs and log density."""
    linen = network_target(functools.partial(users.LinenMLP, width=4))
    ours = network_target(functools.partial(MLP, width=4, depth=1, activation="tanh"))
    assert linen.dim == ours.dim == 17
    theirs = linen.constrain(linen.sample_prior(jax.random.key(3)))
    names = {"network.hidden.0": "network.Dense_0", "network.output": "network.Dense_1"}
    sites = ours.constrain(jnp.arange(17.0))
    theta = jnp.zeros(17)
    for name, places in sites.items():
        place, leaf = name.rsplit(".", 1)
        theta = theta.at[places.astype(int)].set(theirs[f"{names[place]}.{leaf}"])
    start = linen.sample_prior(jax.random.key(3))
    np.testing.assert_allclose(ours.forward(theta, X), linen.forward(start, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        ours.log_density(theta, Data(X, Y, 6)), linen.log_density(start, Data(X, Y, 6)), rtol=1e-5
    )


def test_the_networks_own_initialisation():
    """``initial`` is Flax's (zero biases, kernels that differ by key), ``start`` a draw from the prior."""
    for network in (
        functools.partial(MLP, width=4, depth=1, activation="tanh"),
        functools.partial(users.LinenMLP, width=4),
    ):
        target = network_target(network)
        one, other = (target.constrain(target.init_params(jax.random.key(k))) for k in (0, 1))
        for name in one:
            if name.endswith("bias"):
                np.testing.assert_array_equal(one[name], 0)
            else:
                assert not np.array_equal(one[name], other[name])
        drawn = target.constrain(target.sample_prior(jax.random.key(0)))
        assert all((np.asarray(v) != 0).all() for v in drawn.values())


def test_priors_have_their_scales():
    """By site: iid, by kind of weight, by fan-in."""
    scale = lambda prior, name, shape: float(prior(name, shape).scale)
    iid, normal = priors.iid(scale=2.0), priors.normal(weight_scale=3.0, bias_scale=0.5)
    for name, shape in (("a.kernel", (9, 4)), ("a.bias", (4,))):
        assert scale(iid, name, shape) == 2.0
    assert [scale(normal, "a.kernel", (9, 4)), scale(normal, "a.bias", (4,))] == [3.0, 0.5]
    fan_in = priors.fan_in(weight_scale=3.0, bias_scale=0.5)
    assert [scale(fan_in, "a.kernel", (9, 4)), scale(fan_in, "a.bias", (4,))] == [1.0, 0.5]
    assert scale(fan_in, "conv.kernel", (3, 3, 4, 8)) == 0.5


CASES = {
    "gaussian": (likelihoods.gaussian("regression", 1, noise=dist.LogNormal(-1.0, 1.0)), Y),
    "gaussian_fixed": (GAUSSIAN, Y),
    "heteroscedastic": (likelihoods.heteroscedastic("regression", 1, min_scale=0.01), Y),
    "categorical": (likelihoods.categorical("classification", 3), LABELS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_likelihoods_against_scipy(name):
    """The rows' log likelihood, predictive and linearised likelihood are one distribution, and SciPy's."""
    likelihood, y = CASES[name]
    target = network_target(functools.partial(MLP, width=3, depth=1, activation="tanh"), likelihood, y=y)
    theta = target.sample_prior(jax.random.key(2))
    f = np.asarray(target.forward(theta, X), np.float64)
    assert f.shape == (6, likelihood.out_features)
    if name == "categorical":
        expected = (f - scipy.special.logsumexp(f, axis=1, keepdims=True))[np.arange(6), np.asarray(y)]
    else:
        sigma = {
            "gaussian": lambda: float(target.constrain(theta)["sigma"]),
            "gaussian_fixed": lambda: 0.5,
            "heteroscedastic": lambda: 0.01 + np.log1p(np.exp(f[:, 1])),
        }[name]()
        expected = scipy.stats.norm.logpdf(y, f[:, 0], sigma)
    np.testing.assert_allclose(target.terms(theta, Data(X, y, len(y))).log_lik, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target.predictive(theta, X).log_prob(y), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target.likelihood(theta, X, jnp.asarray(f)).log_prob(y), expected, rtol=1e-4, atol=1e-5)


def test_auto_is_the_likelihood_of_the_task():
    """One output with learned noise, or one a class."""
    noise = dist.LogNormal(-1.0, 1.0)
    assert likelihoods.auto("regression", 1, noise=noise).out_features == 1
    assert likelihoods.auto("classification", 3, noise=noise).out_features == 3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.25])
def test_temperature_divides_the_densities_and_not_the_jacobian(temperature):
    """sigma ~ LogNormal(0, 1) by its logarithm u: (log prior(sigma) + log lik) / T + u, written out."""
    target = make_target(
        functools.partial(eight_schools, mu_scale=5.0, tau_scale=5.0), X[:, :1] ** 2 + 1, Y, temperature
    )
    theta = target.sample_prior(jax.random.key(0))
    sites = target.constrain(theta)
    u = np.log(float(sites["tau"]))
    prior = scipy.stats.norm.logpdf(sites["mu"], 0, 5) + scipy.stats.halfcauchy.logpdf(sites["tau"], scale=5)
    prior += scipy.stats.norm.logpdf(sites["z"]).sum()
    scale = np.asarray(X[:, 0]) ** 2 + 1
    likelihood = scipy.stats.norm.logpdf(Y, sites["mu"] + sites["tau"] * sites["z"], scale).sum()
    data = Data(X[:, :1] ** 2 + 1, Y, 6)
    np.testing.assert_allclose(target.log_density(theta, data), (prior + likelihood) / temperature + u, rtol=1e-5)


def test_a_model_that_is_no_network():
    """Poisson regression: forward is the mean, the predictive has no CDF to be had silently wrong."""
    y = jnp.asarray([0.0, 1.0, 3.0, 0.0, 2.0, 1.0])
    target = make_target(functools.partial(users.poisson, scale=1.0), X, y, 1.0)
    theta = jnp.asarray([0.3, -0.2])
    rate = np.exp(np.asarray(X) @ np.asarray(theta))
    np.testing.assert_allclose(target.forward(theta, X)[:, 0], rate, rtol=1e-5)
    np.testing.assert_allclose(
        target.terms(theta, Data(X, y, len(y))).log_lik, scipy.stats.poisson.logpmf(y, rate), rtol=1e-4
    )
    np.testing.assert_allclose(target.constrain(theta)["w"], theta)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (users.discrete, "'z' is discrete"),
        (users.nothing_latent, "no latent site"),
        (users.nothing_observed, "observes nothing"),
        (users.one_number, "one number for each of the 6 rows"),
    ],
)
def test_a_model_that_cannot_be_done_says_why(model, words):
    """One sentence each."""
    with pytest.raises(ConfigError, match=words):
        make_target(model, X, Y, 1.0)


def test_a_network_that_does_not_fit_its_likelihood_is_refused():
    """One output where two are needed; and something that is no Flax module."""
    with pytest.raises(ConfigError, match="out_features"):
        network_target(users.OneOutput, CASES["heteroscedastic"][0])
    with pytest.raises(ConfigError, match="no Flax module"):
        network_target(functools.partial(users.no_module, width=1))
    with pytest.raises(ConfigError, match="activation"):
        MLP(2, 1, nnx.Rngs(0), width=1, depth=1, activation="step")
    with pytest.raises(ConfigError, match="width"):
        MLP(2, 1, nnx.Rngs(0), width=0, depth=1, activation="tanh")


def test_likelihoods_of_the_other_task_are_refused():
    """With the option that would do."""
    noise = dist.LogNormal(-1.0, 1.0)
    for make in (
        lambda: likelihoods.categorical("regression", 1),
        lambda: likelihoods.gaussian("classification", 3, noise=noise),
        lambda: likelihoods.gaussian_fixed("classification", 3, sigma=1.0),
        lambda: likelihoods.heteroscedastic("classification", 3, min_scale=0.1),
    ):
        with pytest.raises(ConfigError, match="likelihood=auto"):
            make()


@pytest.mark.usefixtures("x64")
def test_target_is_the_written_out_log_density():
    """Against the normal densities written out: sum over rows, prior, temperature, no Jacobian for real sites."""
    problem = gaussian(4, 10, copies=3)
    x, y = jnp.asarray(problem.x, jnp.float64), jnp.asarray(problem.y, jnp.float64)
    theta = random.normal(random.key(0), (4,))
    target = make_target(regression, x, y, 2.0)
    prior = scipy.stats.norm.logpdf(theta, 0, 3).sum()
    likelihood = scipy.stats.norm.logpdf(y, x @ theta, 1)
    np.testing.assert_allclose(target.log_density(theta, Data(x, y, 12)), (prior + likelihood.sum()) / 2, rtol=1e-12)
    part = target.log_density(theta, Data(x[:3], y[:3], 12))
    np.testing.assert_allclose(part, (prior + 4 * likelihood[:3].sum()) / 2, rtol=1e-12)


class Noisy(nnx.Module):
    """A hidden layer with dropout or batch statistics."""

    def __init__(self, in_features, out_features, rngs, *, kind):
        self.first = nnx.Linear(in_features, 4, rngs=rngs)
        self.between = {
            "dropout": lambda: nnx.Dropout(0.5, rngs=rngs),
            "batch": lambda: nnx.BatchNorm(4, rngs=rngs),
            "running": lambda: nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
            "layer": lambda: nnx.LayerNorm(4, rngs=rngs),
        }[kind]()
        self.last = nnx.Linear(4, out_features, rngs=rngs)

    def __call__(self, x):
        return self.last(self.between(self.first(x)))


class NoisyLinen(linen.Module):
    """The same in Linen."""

    out_features: int
    kind: str

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(4)(x)
        if self.kind == "dropout":
            h = linen.Dropout(0.5, deterministic=False)(h)
        elif self.kind == "layer":
            h = linen.LayerNorm()(h)
        else:
            h = linen.BatchNorm(use_running_average=self.kind == "running")(h)
        return linen.Dense(self.out_features)(h)


@pytest.mark.parametrize("network", [Noisy, NoisyLinen])
@pytest.mark.parametrize("kind", ["dropout", "batch", "running"])
def test_a_network_with_state_is_refused(network, kind):
    """With the remedy; LayerNorm, which is one, is accepted."""
    with pytest.raises(ConfigError, match="LayerNorm.*mc_dropout"):
        network_target(functools.partial(network, kind=kind))
    assert network_target(functools.partial(network, kind="layer")).dim > 0


def observed(fn, *, size=None):
    """A model whose y is observed as ``fn(w, x)``."""

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", x.shape[0], subsample_size=size):
            numpyro.sample("y", fn(w, x), obs=y if size is None or y is None else y[:size])

    return model


def test_a_likelihood_that_is_one_number_for_all_rows_has_rows():
    """Probabilities (K,), and a normal, without an axis for the rows: predictions have one, at any number of rows."""

    def classes(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Categorical(logits=w), obs=y)

    target = make_target(classes, X, LABELS)
    w = jnp.array([0.1, 0.5, -0.4])
    p = target.predictive(w, X[:4])
    assert p.batch_shape == (4,)
    np.testing.assert_allclose(class_probabilities(p), np.tile(jax.nn.softmax(w), (4, 1)), rtol=1e-6)
    assert describe(p, LABELS[:4], jax.random.key(0), "classification")["sample"].shape == (4,)
    target = make_target(observed(lambda w, x: dist.Normal(w, 1.0)), X, Y)
    assert target.predictive(jnp.zeros(1), X[:4]).mean.shape == (4,)


def test_a_likelihood_that_is_no_number_a_row_is_refused():
    """Outputs (N, 1) against y (N,) would be N x N numbers."""

    def crossed(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w * x[:, :1], 1.0), obs=y)

    with pytest.raises(ConfigError, match=r"shape \(6, 6\)"):
        make_target(crossed, X, Y)


def test_subsamples_and_improper_priors_are_refused():
    """One sentence each, with what to do."""
    normal = lambda w, x: dist.Normal(w, 1.0)
    for model, words in (
        (observed(normal, size=3), "subsample_size"),
        (improper, "ImproperUniform"),
        (fixed, "'w' has a Delta prior.*numpyro.deterministic"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_target(model, X, Y)


def fixed(x, y=None):
    """A prior of a single value."""
    w = numpyro.sample("w", dist.Delta(1.0)) + numpyro.sample("v", dist.Normal(0, 1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def improper(x, y=None):
    """A prior without draws."""
    w = numpyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)
