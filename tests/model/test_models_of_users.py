"""NumPyro models and networks of users: masks, values without a prior, supports, rows that must not depend on each other.

A fault is one sentence before anything is compiled for a run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro.contrib.module import flax_module, nnx_module, random_flax_module, random_nnx_module

from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.checks import check_rows_alone, outside, scored_rows
from bdlbench.model.target import make_target, rows_interact
from bdlbench.networks.mlp import MLP
from bdlbench.types import ConfigError, Data

X = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
Y = np.sin(X.sum(1)).astype(np.float32)
PRIOR = priors.fan_in(weight_scale=1.0, bias_scale=1.0)
GAUSSIAN = likelihoods.gaussian_fixed("regression", 1, sigma=0.5)


def model_of(fn, **observe):
    """A model whose y is ``fn(w, x)``, observed under masks that are functions of (w, x, y)."""

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        given = {name: mask(w, x, y) for name, mask in observe.items()}
        with numpyro.plate("rows", x.shape[0]), numpyro.handlers.mask(mask=given.pop("mask", True)):
            numpyro.sample("y", fn(w, x), obs=y, **given)

    return model


def normal(w, x):
    """A line."""
    return dist.Normal(w * x[:, 1], 1.0)


def positive(w, x, y):
    """Rows whose first feature is above 0."""
    return x[:, 0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mask", "obs_mask"])
@pytest.mark.parametrize("fn", [normal, lambda w, x: dist.Bernoulli(logits=w * x[:, 1])])
def test_hidden_rows_have_no_likelihood(how, fn):
    """A mask of x: theta is w alone, hidden rows add 0, and a new row is predicted whether hidden or not."""
    y = (Y > 0).astype(np.float32)
    target = make_target(model_of(fn, **{how: positive}), X, y)
    shown = X[:, 0] > 0
    assert 0 < shown.sum() < 6
    assert target.dim == 1 and set(target.constrain(jnp.ones(1))) == {"w"}
    found = target.terms(jnp.full(1, 0.4), Data(X, y, 6))
    expected = np.where(shown, fn(0.4, X).log_prob(y), 0.0)
    np.testing.assert_allclose(found.log_lik, expected, rtol=1e-5)
    assert found.log_factor is None
    np.testing.assert_array_equal(target.scored(X), shown)
    np.testing.assert_array_equal(scored_rows(lambda n, x, y: target, {"a": 1.0}, (X, y), X[:4]), shown[:4])
    new = target.predictive(jnp.full(1, 0.4), X[:4])
    np.testing.assert_allclose(new.log_prob(y[:4]), fn(0.4, X[:4]).log_prob(y[:4]), rtol=1e-5)


def returned(x, y=None):
    """What obs_mask hides is used again."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        y = numpyro.sample("y", dist.Normal(w, 1.0), obs=y, obs_mask=x[:, 0] > 0)
    numpyro.factor("again", -(y.sum() ** 2))


@pytest.mark.parametrize(
    ("term", "reads"),
    [
        (lambda w, x, y: -(w**4), False),
        (lambda w, x, y: -x.shape[0] * w**2, False),
        (lambda w, x, y: -((w * x[:, 1]) ** 2).sum(), True),
        (lambda w, x, y: 0.0 if y is None else -((y - w) ** 2).sum(), True),
    ],
)
def test_factors_that_read_rows_are_known(term, reads):
    """Batches cannot estimate such a term, so it is refused with them; one of the weights alone counts once."""

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.factor("term", term(w, x, y))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(w * x[:, 1], 1.0), obs=y)

    assert make_target(model, X, Y).factor_reads_rows is reads


def parts_of_rows(x, y=None):
    """Single targets of a row are hidden."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    fn = dist.Normal(w * jnp.ones((x.shape[0], 2)), 1.0)
    numpyro.sample("y", fn.mask(x > 0).to_event(1), obs=y)


def entries(x, y=None):
    """The targets of a row are no event."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(w * jnp.ones((x.shape[0], 2)), 1.0).mask(x > 0), obs=y)


@pytest.mark.parametrize(
    ("model", "y", "words"),
    [
        (model_of(normal, mask=lambda w, x, y: x[:, 0] > w), Y, "mask that depends on latent sites"),
        (model_of(normal, obs_mask=lambda w, x, y: x[:, 0] > w), Y, "mask that depends on latent sites"),
        (model_of(normal, mask=lambda w, x, y: True if y is None else y > 0), Y, "mask that depends on y"),
        (returned, Y, "'y_unobserved', which obs_mask hides, enters the density of another site"),
        (parts_of_rows, np.stack([Y, Y], 1), "mask the rows as a whole"),
        (entries, np.stack([Y, Y], 1), "declare the targets of a row as one event"),
    ],
)
def test_a_mask_of_anything_else_is_refused(model, y, words):
    """The message is one sentence with the remedy."""
    with pytest.raises(ConfigError, match=words) as refused:
        make_target(model, X, y)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("model: ")


def test_a_mask_of_an_option_is_refused():
    """Runs that differ in a number share one program, and which rows are scored must not differ between them."""

    def make(numbers, x, y):
        return make_target(model_of(normal, mask=lambda w, x, y: x[:, 0] > numbers["at"]), x, y)

    with pytest.raises(ConfigError, match="depends on an option of the model"):
        scored_rows(make, {"at": 0.1}, (X, Y), X)


def rows(x):
    """A plate."""
    return numpyro.plate("rows", x.shape[0])


def with_params(x, y=None):
    """One value by number, one drawn."""
    a, b = numpyro.param("a", 0.5), numpyro.param("b", lambda key: jax.random.normal(key, (2,)))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with rows(x):
        numpyro.sample("y", dist.Normal(w * a + x @ b, 1.0), obs=y)


def some_weights(x, y=None):
    """A model with a prior over the kernel alone."""
    net = random_flax_module("net", linen.Dense(1), {"kernel": dist.Normal()}, jnp.ones((1, 2)))
    with rows(x):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)


def some_nnx_weights(x, y=None):
    """A model with a prior over the kernel alone, in NNX."""
    net = random_nnx_module("net", nnx.Linear(2, 1, rngs=nnx.Rngs(3)), {"kernel": dist.Normal()})
    with rows(x):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)


def no_weights(x, y=None):
    """A model without a prior over any weight."""
    net = flax_module("net", linen.Dense(1), jnp.ones((1, 2)))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with rows(x):
        numpyro.sample("y", dist.Normal(w + net(x)[:, 0], 1.0), obs=y)


def no_nnx_weights(x, y=None):
    """A model without a prior over any weight, in NNX."""
    net = nnx_module("net", nnx.Linear(2, 1, rngs=nnx.Rngs(3)))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with rows(x):
        numpyro.sample("y", dist.Normal(w + net(x)[:, 0], 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "dim", "names"),
    [
        (with_params, 1, "'a', 'b'"),
        pytest.param(some_weights, 2, "'net.bias'", marks=pytest.mark.slow),
        (some_nnx_weights, 2, "'net.bias'"),
        pytest.param(no_weights, 1, "'net.bias', 'net.kernel'", marks=pytest.mark.slow),
        pytest.param(no_nnx_weights, 1, "'net.bias', 'net.kernel'", marks=pytest.mark.slow),
    ],
)
def test_values_without_a_prior_stay_and_are_named(model, dim, names):
    """Such values are not part of theta, and the key of an estimate does not change them."""
    target = make_target(model, X, Y)
    assert target.dim == dim
    assert not target.needs_key
    assert target.notes == (
        f"model: no prior is given for {names}: no part of the posterior, kept by every method, SVI too, at the initial value",
    )
    lik = [target.terms(jnp.ones(dim), Data(X, Y, 6, key=jax.random.key(k))).log_lik for k in (1, 2)]
    again = make_target(model, X, Y).terms(jnp.ones(dim), Data(X, Y, 6)).log_lik
    np.testing.assert_array_equal(lik[0], lik[1])
    np.testing.assert_array_equal(lik[0], again)
    full = functools.partial(bnn.bnn, network=functools.partial(MLP, width=2, depth=1, activation="tanh"))
    assert make_target(functools.partial(full, prior=PRIOR, likelihood=GAUSSIAN), X, Y).notes == ()


def batch_statistics(x, y=None):
    """State in a model of a user's own."""
    net = random_nnx_module("net", nnx.BatchNorm(2, rngs=nnx.Rngs(3)), dist.Normal())
    with rows(x):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)


def improper(constraint, wrap=lambda fn: fn):
    """A model with a prior that cannot be sampled."""

    def model(x, y=None):
        w = numpyro.sample("w", wrap(dist.ImproperUniform(constraint, (), ())))
        with rows(x):
            numpyro.sample("y", dist.Normal(w, 1.0), obs=y)

    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (batch_statistics, r"'net\$state' is state that is no parameter.*LayerNorm"),
        (improper(dist.constraints.real), r"'w' has an ImproperUniform prior.*Normal\(0, 10\)"),
        (
            improper(dist.constraints.positive, lambda fn: fn.expand([2]).to_event(1)),
            "'w' has an ImproperUniform prior",
        ),
    ],
)
def test_state_and_improper_priors_are_named(model, words):
    """With what works in their place."""
    with pytest.raises(ConfigError, match=words):
        make_target(model, X, Y)


SUPPORTS = [
    (lambda w, x: dist.Poisson(jnp.exp(w)), "whole numbers of at least 0", [0, 3, 7, 1, 0, 2], [0, 3, 7.5, 1, -1, 2]),
    (lambda w, x: dist.LogNormal(w, 1.0), "numbers above 0", [0.1, 3, 7, 1, 4, 2], [1, 3, 0, 1, -1, 2]),
    (lambda w, x: dist.Beta(jnp.exp(w), 1.0), "numbers from 0 to 1", [0.1, 0.5, 0.3, 0.2, 0.9, 0.8], [0.1] * 2 + [1.5, 0.1, -1, 0.1]),
    (lambda w, x: dist.TruncatedNormal(w, 1.0, low=-1.0), "numbers of at least -1", [0.1, 3, 7, 1, 4, -0.9], [1, 3, -2, 1, -1.5, 2]),
    (lambda w, x: dist.Bernoulli(logits=w * x[:, 0]), "0 or 1", [0, 1, 1, 0, 0, 1], [0, 1, 2, 1, -1, 1]),
    (
        lambda w, x: dist.Categorical(logits=w * jnp.ones((x.shape[0], 3))),
        "whole numbers from 0 to 2", [0, 1, 2, 0, 0, 1], [0, 1, 3, 1, -1, 1],
    ),
    (lambda w, x: dist.Binomial(5, logits=w), "whole numbers from 0 to 5", [0, 5, 1, 0, 0, 1], [0, 1, 6, 1, -1, 1]),
    (
        lambda w, x: dist.RightCensoredDistribution(dist.Exponential(jnp.exp(w)), x[:, 0] > 0),
        "numbers above 0", [0.1, 3, 7, 1, 4, 2], [1, 3, -0.5, 1, -1, 2],
    ),
    (lambda w, x: dist.Uniform(x[:, 0] - 5, x[:, 0] + 5), "from its bound", [0, 1, 2, 0, 0, 1], [0, 1, 9, 1, -9, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "words", "good", "bad"), SUPPORTS)
def test_values_outside_the_support_are_found(fn, words, good, bad):
    """In rows 2 and 4 of the bad ones; the support in words."""
    kind = np.int32 if words in ("0 or 1", "whole numbers from 0 to 2") else np.float32
    make = lambda numbers, x, y: make_target(model_of(fn), x, y)
    target = make({}, X, np.asarray(good, kind))
    assert words in target.support
    assert not outside(make, {}, (X, np.asarray(good, kind)), X, np.asarray(good, kind)).any()
    np.testing.assert_array_equal(
        outside(make, {}, (X, np.asarray(good, kind)), X, np.asarray(bad, kind)),
        [False, False, True, False, True, False],
    )


def test_what_the_support_does_not_say():
    """All real numbers; a bound that is a parameter; several targets of a row; hidden rows."""
    assert make_target(model_of(normal), X, Y).fits is None
    free = lambda w, x: dist.Uniform(-jnp.exp(w), jnp.ones(x.shape[0]))
    assert not outside(lambda n, x, y: make_target(model_of(free), x, y), {}, (X, Y), X, Y - 50).any()
    both = lambda w, x: dist.Poisson(jnp.exp(w) * jnp.ones((x.shape[0], 2))).to_event(1)
    counts = np.array([[0, 1]] * 5 + [[1, -1]], np.float32)
    found = outside(lambda n, x, y: make_target(model_of(both), x, y), {}, (X, counts), X, counts)
    np.testing.assert_array_equal(found, [False] * 5 + [True])
    poisson = lambda w, x: dist.Poisson(jnp.exp(w) * jnp.ones(x.shape[0]))
    hidden = lambda n, x, y: make_target(model_of(poisson, mask=positive), x, y)
    bad = np.where(X[:, 0] > 0, 1.0, -1.0).astype(np.float32)
    assert not outside(hidden, {}, (X, bad), X, bad).any()


class Mixing(linen.Module):
    """A network in which a layer may combine rows after a hidden layer."""

    kind: str

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(4)(x["a"] if isinstance(x, dict) else x)
        if self.kind == "batch":
            h = (h - h.mean(0)) / (h.std(0) + 1e-3)
        elif self.kind == "attention":
            weights = jax.nn.softmax(h @ h.T)
            h = weights @ h
        elif self.kind == "convolution":
            h = linen.Conv(2, (3,))(h[..., None]).reshape(h.shape[0], -1)
        elif self.kind == "half":
            h = linen.Dense(4, dtype=jnp.bfloat16)(h).astype(h.dtype)
        elif self.kind == "single":  # its carry has the type of single precision, which double precision refuses
            start = jnp.zeros(h.shape[0], jnp.float32)
            h = jax.lax.scan(lambda c, t: (jnp.tanh(c + t), None), start, h.T)[0][:, None]
        return linen.Dense(1)(jnp.tanh(h))


def network(kind, tree=False):
    """Its target; as a dict of arrays where ``tree``."""
    model = functools.partial(bnn.bnn, network=functools.partial(Mixing, kind=kind), prior=PRIOR, likelihood=GAUSSIAN)

    def packed(x, y=None):
        model({"a": x}, y)

    return lambda numbers, x, y: make_target(packed if tree else model, x, y)


def of_rows(x, y=None):
    """A model of a user that subtracts the mean of the rows."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with rows(x):
        numpyro.sample("y", dist.Normal(w * (x[:, 0] - x[:, 0].mean()), 1.0), obs=y)


def latent_a_row(x, y=None):
    """A model with one latent variable for each row, which cannot be evaluated on one row."""
    with rows(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def estimate(x, y=None):
    """Numbers of its own for the rows."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    noise = jax.random.normal(numpyro.prng_key(), (x.shape[0],))
    with rows(x):
        numpyro.sample("y", dist.Normal(w + noise, 1.0), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "refused"),
    [
        (network("batch"), True),
        (network("batch", tree=True), True),
        (network("attention"), True),
        (network("convolution"), False),
        (network("half"), False),
        (network("single"), False),
        (lambda n, x, y: make_target(of_rows, x, y), True),
        (lambda n, x, y: make_target(latent_a_row, x, y), False),
        (lambda n, x, y: make_target(estimate, x, y), False),
    ],
)
def test_rows_that_depend_on_each_other_are_refused(make, refused):
    """Normalisation over the batch and attention across rows, in a network and in a model; nothing that stays in a row."""
    if not refused:
        check_rows_alone(make, {}, X, Y)
        return
    with pytest.raises(ConfigError, match=r"another likelihood alone.*LayerNorm.*rows_interact: true"):
        check_rows_alone(make, {}, X, Y)


class Meant(Mixing):
    """A network that declares ``rows_interact``."""

    rows_interact = True


def test_who_says_whether_rows_interact():
    """A network, a model, or their partials declare it. For the package's own it is False, and for others unknown."""
    full = functools.partial(bnn.bnn, prior=PRIOR, likelihood=GAUSSIAN)
    declared = functools.partial(Mixing, kind="batch")
    declared.rows_interact = True
    for model, wanted in (
        (functools.partial(full, network=functools.partial(MLP, width=2, depth=1, activation="tanh")), False),
        (functools.partial(full, network=functools.partial(Mixing, kind="batch")), None),
        (functools.partial(full, network=functools.partial(Meant, kind="batch")), True),
        (functools.partial(full, network=declared), True),
        (numpyro.handlers.mask(functools.partial(full, network=declared), mask=True), True),
        (of_rows, None),
    ):
        assert rows_interact(model) is wanted


class Shaped(linen.Module):
    """A network that does not fit the data."""

    kind: str

    @linen.compact
    def __call__(self, x, *train):
        if self.kind == "wide":
            return x @ self.param("kernel", lambda key: jnp.ones((5, 1)))
        if self.kind == "outputs":
            return linen.Dense(3)(x)
        if self.kind == "tuple":
            return linen.Dense(1)(x), linen.Dense(1)(x)
        if self.kind == "train":
            return linen.BatchNorm(use_running_average=not train[0])(linen.Dense(1)(x))
        if self.kind == "unsaid":
            return linen.BatchNorm()(linen.Dense(1)(x))
        if self.kind == "convolution":
            return linen.Dense(1)(linen.Conv(2, (3, 3))(x).reshape(x.shape[0], -1))
        return x[:, :1]


@pytest.mark.parametrize(
    ("kind", "x", "prior", "words"),
    [
        ("wide", X, PRIOR, r"network: it cannot be evaluated on rows of shape \(2,\) \(.*\): .*in_features"),
        (
            "outputs",
            X,
            PRIOR,
            r"network: outputs of shape \(6, 3\) do not fit .* \(6, 1\): let the network take out_features",
        ),
        ("tuple", X, PRIOR, r"network: it returns a tuple: return one array"),
        ("train", X, PRIOR, r"network: it cannot be evaluated on rows of shape \(2,\)"),
        ("unsaid", X, PRIOR, "network: it needs batch statistics.*LayerNorm in place of BatchNorm"),
        ("no weights", X, PRIOR, "network: it has no weights"),
        (
            "convolution",
            np.ones((6, 1, 8, 8), np.float32),
            PRIOR,
            r"data: x has rows .* channels first.*np.moveaxis\(x, 1, -1\)",
        ),
        ("outputs", X, lambda name, shape: None, r"prior: it gives None for the weight 'Dense_0.bias' of shape \(3,\)"),
        ("outputs", X, lambda name, shape: 1.0, "prior: it gives a float for the weight"),
    ],
)
def test_a_network_that_does_not_fit_says_how(kind, x, prior, words):
    """The message is one sentence with the field, the fault and the remedy."""
    model = functools.partial(bnn.bnn, network=functools.partial(Shaped, kind=kind), prior=prior, likelihood=GAUSSIAN)
    with pytest.raises(ConfigError, match=words) as refused:
        make_target(model, x, Y)
    assert "\n" not in str(refused.value)


def test_images_with_their_channels_last_are_taken():
    """A convolution over (height, width, channels)."""
    net = functools.partial(Shaped, kind="convolution")
    model = functools.partial(bnn.bnn, network=net, prior=PRIOR, likelihood=GAUSSIAN)
    assert make_target(model, np.ones((6, 8, 8, 1), np.float32), Y).dim == 2 * 9 + 2 + 128 + 1


def test_laplace_counts_hidden_rows_for_nothing():
    """The precision of w is 1 + sum of x^2 over the rows that the mask shows."""
    from bdlbench.inference.laplace import laplace
    from bdlbench.types import Schedule

    target = make_target(model_of(normal, mask=positive), X, Y)
    data = Data(jnp.asarray(X), jnp.asarray(Y), 6)
    method = laplace(target, Schedule(1, 0, 1, 0), structure="full", evidence=False)
    key = jax.random.key(0)
    state, _ = method.finalize(key, method.init(key, jnp.zeros(1), data), data)
    variance = float((state.scale / state.chol[0, 0])[0] ** 2)
    np.testing.assert_allclose(1 / variance, 1 + (X[X[:, 0] > 0, 1] ** 2).sum(), rtol=1e-5)
