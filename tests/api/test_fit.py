"""Fits from Python have the bits of the command line and the caller's units, and refuse wrong input in one sentence."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from flax import linen, nnx
from from_python import NET, TINY, regression_on_tree, rows
from models_of_users import LinenMLP, poisson

import bdlbench as bdl
from bdlbench.api.options import REST, sorted_options
from bdlbench.api.problem import make_parts
from bdlbench.data.sklearn_sets import _diabetes
from bdlbench.data.splits import random_split
from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.group import run
from bdlbench.store import Store


@pytest.fixture(scope="module")
def posterior():
    """A short NUTS run."""
    return bdl.fit(NET, *rows(), **TINY)


@pytest.fixture(scope="module")
def classifier():
    """A fit to classes that have names."""
    x, y = rows()
    return bdl.fit(NET, x, np.where(y > 100, "high", "low"), inference="sghmc", num_chains=2, num_warmup=20,
                   num_samples=10, thinning=1, batch_size=8, progress=False)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("nuts", ["inference.before.0.schedule.num_warmup=20"]),
        ("sghmc", ["inference.schedule.batch_size=16", "inference.schedule.thinning=2"]),
    ],
)
def test_draws_are_those_of_the_command_line(method, settings, store_path):
    """The same raw training rows, schedule and seed give the same bits, with full data and with batches."""
    short = ["inference.schedule.num_chains=2", "inference.schedule.num_warmup=20", "inference.schedule.num_samples=6"]
    record = run(
        ["data=diabetes", f"inference={method}", "~tuned", "network.width=3", "seed=5", "metrics=[lppd]",
         f"store.path={store_path}", "progress=off", *short, *settings]
    )  # fmt: skip
    table = _diabetes()
    split = random_split(len(table.y), split=0, test_fraction=0.2, validation_fraction=0.0, n_train=None)
    given = {s.split("=")[0]: int(s.split("=")[1]) for s in [*short, *settings]}
    fitted = bdl.fit(NET, table.x[split.train], table.y[split.train], inference=method, seed=5, options=given,
                     progress=False)  # fmt: skip
    with Store(store_path).posterior(record["id"]) as tree:
        stored = {str(name): values.to_numpy() for name, values in tree["posterior"].data_vars.items()}
    assert set(stored) == set(fitted.sites)
    for name, values in stored.items():
        np.testing.assert_array_equal(values, fitted.sites[name], err_msg=name)


@pytest.mark.slow
def test_prediction_has_the_units_of_the_caller(posterior):
    """A fit to a shifted and stretched target predicts the shifted and stretched values.

    The model sees the same standardised rows but for the rounding of float64, which float32 may show in its last bit;
    20 steps of NUTS do not amplify that beyond 1e-3 of a standard deviation.
    """
    x, y = rows()
    other = bdl.fit(NET, x, 5 - 2 * y, **TINY)
    a, b = posterior.predict(x), other.predict(x)
    assert 90 < a.mean.mean() < 110
    assert np.isclose(b.mean.mean(), 5 - 2 * a.mean.mean(), atol=0.5)
    # Densities: log p(5 - 2 y) = log p(y) - log 2 for a model that is the same in standardised units up to the sign.
    assert b.variance.mean() / a.variance.mean() == pytest.approx(4, rel=0.5)


def test_log_prob_integrates_to_one(posterior):
    """The density in the caller's units integrates to 1.

    The trapezoid rule over 12 sd of a smooth density errs by < 1e-4.
    """
    x, _ = rows()
    p = posterior.predict(x[:1])
    grid = np.linspace(p.mean[0] - 12 * p.sd[0], p.mean[0] + 12 * p.sd[0], 401)
    density = np.exp(posterior.predict(np.repeat(x[:1], 401, 0)).log_prob(grid))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(density * grid, grid) == pytest.approx(p.mean[0], abs=1e-2 * p.sd[0])


def test_variance_splits_and_quantiles_are_of_the_mixture(posterior):
    """The law of total variance holds. The mixture's distribution function at a quantile is the quantile's level."""
    from scipy.stats import norm

    x, _ = rows()
    p = posterior.predict(x[:7])
    np.testing.assert_allclose(p.variance, p.variances.mean(0) + p.means.var(0))
    np.testing.assert_allclose(p.noise_variance + p.model_variance, p.sd**2)
    for level in (0.05, 0.5, 0.9):
        reached = norm.cdf(p.quantile(level), p.means, np.sqrt(p.variances)).mean(0)
        np.testing.assert_allclose(reached, level, atol=1e-8)
    low, high = p.interval(0.8)
    np.testing.assert_allclose([low, high], p.quantile([0.1, 0.9]))
    assert p.sample().shape == (40, 7)
    assert p.sample(5).shape == (5, 7)
    assert p.sample(50).shape == (50, 7)
    assert not np.array_equal(p.sample(), p.sample(seed=1))


@pytest.mark.slow
def test_classes_are_the_callers(classifier):
    """Classes keep their names and probabilities sum to one.

    The mutual information is the difference of the entropies.
    """
    x, y = rows()
    p = classifier.predict(x)
    assert p.classes.tolist() == ["high", "low"]
    assert set(p.labels) <= {"high", "low"}
    np.testing.assert_allclose(p.probs.sum(1), 1)
    np.testing.assert_allclose(p.mutual_information, p.entropy - p.noise_entropy, atol=1e-12)
    names = np.where(y > 100, "high", "low")
    chosen = p.probs[np.arange(len(y)), (names == "low").astype(int)]
    np.testing.assert_allclose(p.log_prob(names), np.log(chosen), rtol=1e-4)
    assert set(np.unique(p.sample())) <= {"high", "low"}
    with pytest.raises(ConfigError, match="'mid', which the fit has not seen"):
        p.log_prob(np.where(y > 100, "mid", "low"))
    with pytest.raises(ConfigError, match="belongs to amounts"):
        _ = p.mean


def test_params_are_the_modules_and_apply_binds_them(posterior):
    """The network, applied with the parameters of each draw, gives the predicted means of the draws."""
    x, y = rows()
    params = posterior.params
    assert params["hidden"][0]["kernel"].shape == (2, 20, 3, 3)
    outputs = posterior.apply(lambda net, x: net(x), posterior.standardize(x))[..., 0]
    # Float32 sums of 3 terms a layer: relative error some 1e-6 of numbers of order 1.
    np.testing.assert_allclose(outputs.reshape(40, -1) * y.std() + y.mean(), posterior.predict(x).means, rtol=1e-5)


@pytest.mark.slow
def test_linen_modules_and_instances(posterior):
    """A Linen class with bound options, its instance, and an NNX instance can be fitted and applied."""
    x, y = rows()
    for network in (functools.partial(LinenMLP, width=3), LinenMLP(width=3, out_features=1)):
        fitted = bdl.fit(network, x, y, inference="map", num_warmup=20, progress=False)
        assert fitted.params["Dense_0"]["kernel"].shape == (1, 1, 3, 3)
        out = fitted.apply(lambda net, x: net(x), fitted.standardize(x))[0, 0, :, 0]
        np.testing.assert_allclose(out * y.std() + y.mean(), fitted.predict(x).mean, rtol=1e-5)
    instance = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    fitted = bdl.fit(instance, x, y, inference="map", num_warmup=0, progress=False)
    np.testing.assert_array_equal(fitted.params["kernel"][0, 0], instance.kernel[...])


@pytest.mark.slow
def test_a_numpyro_model_of_counts_keeps_its_units():
    """Counts are not standardised, and their quantiles are computed from draws."""
    x, _ = rows()
    y = np.random.default_rng(1).poisson(3.0, len(x))
    fitted = bdl.fit(model=functools.partial(poisson, scale=1.0), x=x, y=y, **TINY)
    p = fitted.predict(x)
    assert (p.sample() == np.round(p.sample())).all()
    assert set(fitted.params) == {"w"}
    np.testing.assert_array_equal(p.quantile(0.5), np.quantile(p.sample(), 0.5, axis=0))


@pytest.mark.slow
def test_trees_of_inputs_reach_the_model_with_their_types():
    """Whole numbers stay whole and floats are standardised. A tree of another structure is refused."""
    rng = np.random.default_rng(0)
    x = {"group": rng.integers(0, 3, 60), "dose": rng.normal(size=60) * 50}
    y = x["group"] + x["dose"] / 10 + 0.1 * rng.normal(size=60)
    fitted = bdl.fit(model=regression_on_tree, x=x, y=y, **TINY | {"num_warmup": 100})
    assert np.corrcoef(fitted.predict(x).mean, y)[0, 1] > 0.99
    with pytest.raises(ConfigError, match="another structure.*dose"):
        fitted.predict({"group": x["group"]})


class OnTree(nnx.Module):
    """A network that reads a tree of inputs."""

    def __init__(self, out_features, rngs):
        self.a, self.b = nnx.Linear(2, out_features, rngs=rngs), nnx.Linear(1, out_features, rngs=rngs)

    def __call__(self, x):
        return self.a(x["one"]) + self.b(x["two"])


@pytest.mark.slow
def test_networks_on_trees():
    """A Flax module may read a tree."""
    x, y = rows()
    fitted = bdl.fit(OnTree, {"one": x[:, :2], "two": x[:, 2:]}, y, inference="map", num_warmup=200, progress=False)
    assert np.corrcoef(fitted.predict({"one": x[:, :2], "two": x[:, 2:]}).mean, y)[0, 1] > 0.8


@pytest.mark.slow
def test_tables_are_read_by_name():
    """Columns may have another order. An additional column gives a warning, and a missing column is refused."""
    x, y = rows()
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    fitted = bdl.fit(NET, table, pd.Series(y, name="yield"), inference="map", num_warmup=20, progress=False)
    same = fitted.predict(table).mean
    np.testing.assert_array_equal(fitted.predict(table[["c", "a", "b"]]).mean, same)
    with pytest.warns(UserWarning, match="columns extra of x are not used"):
        np.testing.assert_array_equal(fitted.predict(table.assign(extra=1.0)).mean, same)
    with pytest.raises(ConfigError, match="lacks the column b"):
        fitted.predict(table[["a", "c"]])


def test_data_tree_is_arviz(posterior):
    """Groups have the axes chain and draw first. ArviZ's summary and loo work. The log likelihood equals log_prob."""
    import arviz as az

    x, y = rows()
    tree = posterior.data_tree
    assert set(tree.children) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    assert az.summary(tree).shape[0] == posterior._server.theta.shape[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 40 draws: Pareto k is large
        assert np.isfinite(az.loo(tree).elpd)
    pointwise = tree["log_likelihood"]["y"].to_numpy().reshape(40, -1)
    direct = np.log(np.exp(pointwise.astype(float)).mean(0))
    np.testing.assert_allclose(direct, posterior.predict(x).log_prob(y), atol=1e-4)
    with pytest.warns(UserWarning, match="log_likelihood is left out"):
        assert "log_likelihood" not in posterior.to_data_tree(max_bytes=10).children


def test_diagnostics_and_repr_say_what_a_reader_must_know(posterior):
    """With only 40 draws, R-hat or ESS give a warning, and repr shows it."""
    found = posterior.diagnostics
    assert found["rhat_max"] > 0
    assert found["num_diverging"] >= 0
    assert found["num_grads"]["sample"] > 0
    assert any("ESS" in text for text in posterior.warnings)
    assert "warning: bulk ESS" in repr(posterior)


@pytest.mark.slow
def test_laplace_predicts_linearised_and_warns_of_its_params():
    """Predictions use the linearised network and differ from the network at the draws. A warning says so."""
    x, y = rows()
    fitted = bdl.fit(NET, x, y, inference="laplace", num_samples=30, options={"before.0.schedule.num_warmup": 200},
                     progress=False)  # fmt: skip
    with pytest.warns(UserWarning, match="linearised at its mode"):
        _ = fitted.params
    outputs = fitted.apply(lambda net, x: net(x), fitted.standardize(x))[0, :, :, 0] * y.std() + y.mean()
    assert np.abs(outputs - fitted.predict(x).means).max() > 1e-3


@pytest.mark.slow
def test_populations_are_chains():
    """The particles of SMC and SVGD are returned as chains."""
    x, y = rows()
    fitted = bdl.fit(NET, x, y, inference="svgd", num_warmup=10, num_particles=5, progress=False)
    assert fitted.num_chains == 5
    assert fitted.params["output"]["bias"].shape == (5, 1, 1)
    assert fitted.predict(x).means.shape == (5, len(y))


def test_settings_of_the_caller_are_untouched():
    """A fit does not change the caller's precision, compilation cache and x64 setting."""
    from bdlbench.sampling.devices import SETTINGS, settings

    before = {name: getattr(jax.config, name) for name in (*SETTINGS, "jax_enable_x64")}
    try:
        jax.config.update("jax_default_matmul_precision", "bfloat16")
        with settings():
            assert jax.config.jax_default_matmul_precision == "float32"
        assert jax.config.jax_default_matmul_precision == "bfloat16"
    finally:
        jax.config.update("jax_default_matmul_precision", before["jax_default_matmul_precision"])
    x, y = rows()
    bdl.fit(NET, x, y, inference="map", num_warmup=1, progress=False)
    assert {name: getattr(jax.config, name) for name in before} == before


def test_progress_is_silent_when_asked(capfd):
    """With progress off, nothing is written to standard output or standard error."""
    x, y = rows()
    bdl.fit(NET, x, y, inference="map", num_warmup=20, progress=False)
    assert capfd.readouterr() == ("", "")
    bdl.fit(NET, x, y, inference="map", num_warmup=20)
    assert "map fit" in capfd.readouterr().err


def test_a_column_of_targets_is_raveled_with_a_warning():
    """Targets of shape (n, 1) are treated as (n,), with a warning."""
    x, y = rows()
    with pytest.warns(UserWarning, match=r"taken as \(n,\)"):
        fitted = bdl.fit(NET, x, y[:, None], inference="map", num_warmup=1, progress=False)
    assert fitted.predict(x).mean.shape == y.shape


def test_options_have_the_paths_of_the_command_line():
    """Those of the parts and of the method by their whole path; no option of a method has the name of a section."""
    given = {"network.width": 2, "prior.weight_scale": 0.5, "inference.schedule.num_warmup": 3, "thinning": 2}
    parts = make_parts(network="mlp", model=None, prior=None, likelihood=None, temperature=1.0, inference="nuts",
                       options=sorted_options(given, {}))  # fmt: skip
    assert parts.nodes["network"]["width"] == 2
    assert parts.nodes["prior"]["weight_scale"] == 0.5
    assert (parts.nodes["inference"]["schedule"]["num_warmup"], parts.nodes["inference"]["schedule"]["thinning"]) == (
        3,
        2,
    )
    for file in (conf_dir() / "inference").glob("*.yaml"):
        assert not set(configuration.preset("inference", file.stem)) & {*configuration.sections(), REST}


def unobserved(x, y=None):
    """A model without an observed site."""
    numpyro.sample("w", dist.Normal(0, 1))


class Wide(linen.Module):
    """A network that always has two outputs."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x)


def _with(x, row, value):
    x = x.copy()
    x[row] = value
    return x


X, Y = rows()
BAD = {
    "nan": (lambda: bdl.fit(NET, _with(X, (3, 1), np.nan), Y), "x holds NaN in row 3, column 1"),
    "nan_y": (lambda: bdl.fit(NET, X, _with(Y, 4, np.inf)), "y holds infinity in row 4"),
    "rows": (lambda: bdl.fit(NET, X, Y[:-1]), "40 rows but y has 39"),
    "one_row": (lambda: bdl.fit(NET, X[:1], Y[:1]), "at least two"),
    "constant": (lambda: bdl.fit(NET, X, np.ones(40)), "constant"),
    "text": (lambda: bdl.fit(NET, X.astype(str).astype(object) + "a", Y), "holds no numbers"),
    "integers": (lambda: bdl.fit(NET, X, Y.astype(int)), "amounts or classes"),
    "one_class": (lambda: bdl.fit(NET, X, np.full(40, "a")), "single class"),
    "option": (lambda: bdl.fit(NET, X, Y, inference="svi", step_size=0.1), "inference.step_size is unknown"),
    "preset": (lambda: bdl.fit(NET, X, Y, inference="nutz"), "'nutz' is unknown: choose one of"),
    "network": (lambda: bdl.fit(3, X, Y), "must be a Flax module"),
    "needs": (lambda: bdl.fit(LinenMLP, X, Y), "needs width"),
    "both": (lambda: bdl.fit(NET, X, Y, model=unobserved), "both given"),
    "observes": (lambda: bdl.fit(model=unobserved, x=X, y=Y), "it observes nothing"),
    "outputs": (lambda: bdl.fit(Wide, X, Y), "do not fit the likelihood"),
    "seed": (lambda: bdl.fit(NET, X, Y, seed=-1), "seed=-1"),
    "likelihood": (lambda: bdl.fit(NET, X, Y, likelihood="gausian"), "'gausian' is unknown"),
    "twice": (lambda: bdl.fit(NET, X, Y, num_samples=3, options={"num_samples": 3}), "given twice"),
    "samples": (lambda: bdl.fit(NET, X, Y, num_samples=0), "num_samples=0"),
    "step": (lambda: bdl.fit(NET, X, Y, inference="sghmc", step_size=-1.0), "step_size"),
    "options": (lambda: bdl.fit(NET, X, Y, options=[1]), "options=.* must be a mapping"),
    "prior": (lambda: bdl.fit(NET, X, Y, prior=3), "prior is a int: give"),
    "function": (lambda: bdl.fit(NET, X, Y, likelihood=3), "likelihood is a int: give"),
    "temperature": (lambda: bdl.fit(NET, X, Y, temperature=-1.0), "temperature=-1.0 must be a positive finite number"),
    "batch": (lambda: bdl.fit(NET, X, Y, inference="sghmc", batch_size=100), "batch_size=100 does not fit 40"),
    "no_y": (lambda: bdl.fit(NET, X), "y is missing"),
    "no_x": (lambda: bdl.fit(NET, None, Y), "x is missing"),
    "columns": (lambda: bdl.fit(NET, pd.DataFrame(X, columns=list("aab")), Y), "two columns called a"),
    "missing_class": (lambda: bdl.fit(NET, X, np.array([None, *["a", "b"] * 19, "a"], object)), "no class in row 0"),
    "table": (lambda: bdl.score_table({"a": 3}, X, Y), r"posteriors\['a'\] is a int"),
    "nothing_saved": (lambda: bdl.load("nowhere"), "holds no saved posterior"),
    "no_run": (lambda: bdl.load("abc", store="nowhere"), "no finished run in 'nowhere' begins with 'abc'"),
    "entry": (
        lambda: bdl.fit(NET, X, Y, options={"before.7.x": 1}),
        "before.7 is no option here: .* the entry 0 alone",
    ),
    "no_entry": (
        lambda: bdl.fit(NET, X, Y, options={"before.a": 1}),
        "before.a is no option here: .* the entry 0 alone",
    ),
    "tuned": (lambda: bdl.fit(NET, X, Y, tuned="a"), "tuned belongs to a command and not to a fit: give the tuned"),
    "data": (
        lambda: bdl.fit(NET, X, Y, options={"data.split": 1}),
        "data.split belongs to a command.*the rows are x and y",
    ),
    "argument": (lambda: bdl.fit(NET, X, Y, options={"seed": 1}), "give the argument seed=... of fit"),
    "kept": (
        lambda: bdl.fit(NET, X, Y, options={"limits.attempts": "off"}),
        "limits.attempts belongs to a run that is kept",
    ),
    "warm": (lambda: bdl.fit(NET, X, Y, warm_start="a"), "warm_start names a run in a store"),
    "of_the_store": (
        lambda: bdl.fit(NET, X, Y, options={"store.foo": 1}),
        "store.foo is unknown: a fit takes store.pred",
    ),
    "paths": (lambda: bdl.fit(NET, X, Y, num_samples=3, options={"inference.schedule.num_samples": 3}), "given twice"),
    "own": (lambda: bdl.fit(Wide, X, Y, options={"network.width": 3}), "network.width is an option of a preset"),
    "object": (lambda: bdl.fit(NET, X, Y, inference="svi", optimizer=object()), "plain values"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said_in_one_sentence(case):
    """Wrong input raises a ConfigError of one line before anything is compiled."""
    call, words = BAD[case]
    with pytest.raises(ConfigError, match=words) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_what_does_not_fit_at_prediction(posterior):
    """Predictions refuse rows with another number of columns, and NaN, as a fit does."""
    with pytest.raises(ConfigError, match=r"rows of shape \(2,\)"):
        posterior.predict(X[:, :2])
    with pytest.raises(ConfigError, match="NaN in row 0"):
        posterior.predict(_with(X, (0, 0), np.nan))
    with pytest.raises(ConfigError, match="40 rows but y has 3"):
        posterior.predict(X).log_prob(Y[:3])
    with pytest.raises(ConfigError, match="at least one"):
        posterior.predict(X[:0])
    with pytest.raises(ConfigError, match="precision='half' is unknown"):
        posterior.predict(X, precision="half")
    with pytest.raises(ConfigError, match="folder='/dev/null/p' cannot be made"):
        posterior.save("/dev/null/p")
    with pytest.raises(ConfigError, match="^seed=-1 must be a whole number"):
        posterior.predict(X).sample(seed=-1)
    with pytest.raises(ConfigError, match="^q=1.0 must lie strictly between 0 and 1"):
        posterior.predict(X).quantile(1.0)


def exploding(x, y=None):
    """A model without a finite density."""
    w = numpyro.sample("w", dist.Normal(0, 1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(w + jnp.log(-jnp.ones(x.shape[0])), 1.0), obs=y)


def test_a_fit_without_a_finite_draw_says_why():
    """If no draw is finite, an error with the reason is raised and no posterior is returned."""
    with pytest.raises(FloatingPointError, match="no finite draw: the log density is non-finite in 1 of 1 chains"):
        bdl.fit(model=exploding, x=X, y=Y, inference="svi", num_warmup=5, progress=False)


def test_an_interruption_leaves_nothing(monkeypatch):
    """KeyboardInterrupt is passed on to the caller, and the progress display has ended."""
    from bdlbench.api import fitting

    class Interrupting(fitting.Notebook):
        ended = None

        def _show(self, text):
            pass

        def advance(self, *args):
            raise KeyboardInterrupt

        def finish(self, message):
            Interrupting.ended = message

    monkeypatch.setattr(fitting, "progress_of", lambda progress: Interrupting())
    with pytest.raises(KeyboardInterrupt):
        bdl.fit(NET, X, Y, inference="map", num_warmup=5)
    assert Interrupting.ended == "map fit: stopped"
