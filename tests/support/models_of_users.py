"""Models, networks and a data set that a user could write, and that configurations name by ``_target_``."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen

from bdlbench.data.dataset import Dataset, make_dataset


class LinenMLP(linen.Module):
    """A Linen network with one hidden layer."""

    width: int
    out_features: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.tanh(linen.Dense(self.width)(x))
        return linen.Dense(self.out_features)(h)


class OneOutput(linen.Module):
    """A network that always has one output, even if the likelihood needs more."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(1)(x)


def no_module(*, width: int) -> str:
    """A factory that does not return a network."""
    return "network"


def poisson(x: jax.Array, y: jax.Array | None = None, *, scale: float) -> None:
    """Poisson regression with a log link."""
    w = numpyro.sample("w", dist.Normal(0.0, scale).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(x @ w)), obs=y)


def groups(x: jax.Array, y: jax.Array | None = None) -> None:
    """A mean for each of five groups, whose indices are the first column of x; refuses columns that are no integers."""
    assert jnp.issubdtype(x.dtype, jnp.integer)
    means = numpyro.sample("means", dist.Normal(0.0, 2.0).expand([5]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(means[x[:, 0]], 0.5), obs=y)


def heavy(x: jax.Array, y: jax.Array | None = None, *, df: float) -> None:
    """Linear regression with noise from Student's t distribution with ``df`` degrees of freedom."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.StudentT(df, x @ w, 1.0), obs=y)


def student(x: jax.Array, y: jax.Array | None = None, *, scale: float) -> None:
    """Linear regression without intercept, with noise from Student's t distribution with 4 degrees of freedom."""
    w = numpyro.sample("w", dist.Normal(0.0, scale).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.StudentT(4.0, x @ w, 1.0), obs=y)


def small_outputs(x: jax.Array, y: jax.Array | None = None) -> None:
    """Linear regression with a term that keeps the outputs of all rows small."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    numpyro.factor("small", -((x @ w) ** 2).sum())
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def two_wells(x: jax.Array, y: jax.Array | None = None, *, depth: float) -> None:
    """theta ~ N(0, 3^2) with two narrow modes at -5 and 5. For theta > 4 the density is NaN."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 3.0))
    wells = jnp.logaddexp(-depth * (theta + 5) ** 2, -depth * (theta - 5) ** 2)
    numpyro.factor("wells", jnp.where(theta > 4, jnp.nan, wells))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0 * theta, 1.0), obs=y)


def steep(x: jax.Array, y: jax.Array | None = None) -> None:
    """y ~ N(exp(80 u) x, 1), u ~ U(0, 1). Rows with x = 0 do not depend on u; with x = 1 the likelihood overflows."""
    u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.exp(80.0 * u) * x[:, 0], 1.0), obs=y)


def far_test() -> Dataset:
    """Return a data set with ten training rows at x = 0 and three test rows at x = 1."""
    train, test = (np.zeros((10, 1)), np.linspace(-1.0, 1.0, 10)), (np.ones((3, 1)), np.zeros(3))
    return make_dataset(
        name="far_test", task="regression", train=train, test=test, standardize=False, feature_names=("x",)
    )


def discrete(x: jax.Array, y: jax.Array | None = None) -> None:
    """A model with a discrete latent site, which gradient methods cannot sample."""
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def nothing_latent(x: jax.Array, y: jax.Array | None = None) -> None:
    """A model without latent sites."""
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def nothing_observed(x: jax.Array, y: jax.Array | None = None) -> None:
    """A model without an observed site."""
    numpyro.sample("w", dist.Normal(0.0, 1.0))


def one_number(x: jax.Array, y: jax.Array | None = None) -> None:
    """A model with one joint density of all rows, so that there is no log likelihood for each row."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.MultivariateNormal(w * jnp.ones(x.shape[0]), jnp.eye(x.shape[0])), obs=y)


def masked(x: jax.Array, y: jax.Array | None = None) -> None:
    """Rows whose first feature is not above 0 are hidden; the intercept is no latent site."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    f = x @ w + numpyro.param("shift", 0.5)
    with numpyro.plate("rows", x.shape[0]), numpyro.handlers.mask(mask=x[:, 0] > 0):
        numpyro.sample("y", dist.Normal(f, 1.0), obs=y)


def hidden(x: jax.Array, y: jax.Array | None = None, *, above: float) -> None:
    """The mask depends on an option."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y, obs_mask=x[:, 0] < above)


def centred(x: jax.Array, y: jax.Array | None = None) -> None:
    """Each row depends on the mean of all rows."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(w * (x[:, 0] - x[:, 0].mean()), 1.0), obs=y)


def crossed(x: jax.Array, y: jax.Array | None = None) -> None:
    """Outputs (N, 1) against y (N,)."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(w * x[:, :1], 1.0), obs=y)


def two_classes(x: jax.Array, y: jax.Array | None = None) -> None:
    """Logistic regression."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=w * x[:, 0]), obs=y)


def learned_tail(x: jax.Array, y: jax.Array | None = None) -> None:
    """Student's t of 1.2 to 2 degrees of freedom, which have a mean and no variance."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    df = numpyro.sample("df", dist.Uniform(1.2, 2.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.StudentT(df, x @ w, 1.0), obs=y)


def rows_of_four_parts(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows in the source's units: as many test rows as shifted rows, of which each set has other targets.

    Out-of-distribution rows lie three times as far out, where a posterior is less sure.
    """
    rng = np.random.default_rng(5)
    out = {}
    for part, size, scale, offset in (("train", 24, 1, 0), ("test", 12, 1, 0), ("far", 12, 1, 2), ("out", 12, 3, 0)):
        x = 5 + scale * rng.normal(size=(size, 2)) + offset
        signal = x[:, 0] - 5 - np.abs(x[:, 1] - 5)
        label = np.clip(np.floor(signal + 2), 0, classes - 1).astype(np.int32) if classes else 0
        out[part] = (x, label if classes else 100 + 30 * signal + 15 * rng.normal(size=size))
    return out


def four_parts(*, classes: int) -> Dataset:
    """Return :func:`rows_of_four_parts` as a data set, of a regression if ``classes`` is 0."""
    parts = rows_of_four_parts(classes)
    return make_dataset(
        name="four_parts",
        task="classification" if classes else "regression",
        train=parts["train"],
        test=parts["test"],
        shifted={"far": parts["far"]},
        ood={"out": parts["out"]},
        num_classes=classes or None,
        feature_names=("a", "b"),
    )
