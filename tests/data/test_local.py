"""Sets that need no download: what scikit-learn carries, what is generated, eight schools."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from bdlbench.data import density, generated, physics, schools, sklearn_sets
from bdlbench.types import ConfigError

SPLIT: dict[str, Any] = {"split": 0, "test_fraction": 0.2, "validation_fraction": 0.0, "n_train": None}
PLAIN: dict[str, Any] = {"validation_fraction": 0.0, "n_train": None}


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "wine_cultivars", "digits"])
def test_files_of_scikit_learn_equal_its_loaders(name: str) -> None:
    """Reading the files directly gives what the library's loaders give, value by value."""
    import sklearn.datasets

    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(sklearn.datasets, f"load_{name.removesuffix('_cultivars')}")(**options)
    table = getattr(sklearn_sets, f"_{name}")()
    np.testing.assert_array_equal(table.x * (16 if name == "digits" else 1), bunch.data)
    np.testing.assert_array_equal(table.y, bunch.target)
    if name in ("diabetes", "wine_cultivars"):
        assert table.feature_names == tuple(bunch.feature_names)
    if name != "diabetes":
        assert table.class_names == tuple(str(c) for c in bunch.target_names)
    if name == "breast_cancer":
        renamed = [
            f"{f.split()[0]} {f.split(' ', 1)[1]}".replace(" ", "_") if f.split()[0] in ("mean", "worst")
            else "error_" + f.removesuffix(" error").replace(" ", "_")
            for f in bunch.feature_names
        ]  # fmt: skip
        assert list(table.feature_names) == renamed


def test_diabetes_counts() -> None:
    """442 patients, ten features, a fifth of them tested: round(0.8 * 442) = 354 train."""
    data = sklearn_sets.diabetes(**SPLIT)
    assert data.train.x.shape == (354, 10) and data.test is not None and len(data.test.y) == 88
    assert data.target_name == "progression" and data.num_outputs == 1


def test_digits_are_scaled_by_a_constant() -> None:
    """Pixels lie in [0, 1] and keep their zero; images and rows hold the same pixels."""
    flat, image = sklearn_sets.digits(**SPLIT, flatten=True), sklearn_sets.digits(**SPLIT, flatten=False)
    assert flat.train.x.shape == (1438, 64) and image.train.x.shape == (1438, 8, 8, 1)
    np.testing.assert_array_equal(flat.train.x, image.train.x.reshape(-1, 64))
    assert flat.train.x.min() == 0.0 and flat.train.x.max() == 1.0
    assert flat.x_scaler is not None and flat.x_scaler.original(1.0) == 16.0


def test_two_moons_geometry() -> None:
    """Without noise the points are scikit-learn's, as sets; noise 1e-12 stands for none."""
    from sklearn.datasets import make_moons

    data = generated.two_moons(n=50, noise=1e-12, seed=0, **(SPLIT | {"test_fraction": 0.0}))
    assert data.x_scaler is not None and data.test is None
    ours = np.column_stack([data.x_scaler.original(data.train.x), data.train.y])
    x, y = make_moons(50)
    theirs = np.column_stack([x, y])
    order = [np.lexsort(a.round(3).T) for a in (ours, theirs)]
    np.testing.assert_allclose(ours[order[0]], theirs[order[1]], atol=1e-5)


def test_linear_regression_is_the_known_line() -> None:
    """The residuals of both draws are N(0, 0.5^2): Kolmogorov-Smirnov at 1e-6 on 2 x 2,000 points, any seed.

    Train and test share the grid, and the two draws differ.
    """
    data = generated.linear_regression(n=2000, center=5.0, half_width=5.0, seed=7)
    assert data.test is not None and data.x_scaler is None and data.y_scaler is None
    np.testing.assert_allclose(data.train.x[:, 0], np.linspace(0, 10, 2000), atol=1e-6)
    np.testing.assert_array_equal(data.train.x, data.test.x)
    for rows in (data.train, data.test):
        residual = (rows.y - 3.0 * rows.x[:, 0] - 2.0) / 0.5
        assert stats.kstest(residual, "norm").pvalue > 1e-6
    assert not np.array_equal(data.train.y, data.test.y)


def test_cosine_gap_leaves_the_gap_empty() -> None:
    """Train and test lie in the two intervals, the rest in the gap; residual noise is N(0, 0.1^2) (KS, 1e-6)."""
    data = generated.cosine_gap(n_cluster=500, n_test=1000, noise=0.1, seed=3, **PLAIN)
    assert data.test is not None and len(data.train.y) == 1000
    for rows in (data.train, data.test):
        x = rows.x[:, 0]
        assert (((x >= -1) & (x <= -0.7)) | ((x >= 0.5) & (x <= 1))).all()
        assert stats.kstest((rows.y - np.cos(4 * x + 0.8)) / 0.1, "norm").pvalue > 1e-6
    gap = data.shifted["gap"].x
    assert (gap > -0.7).all() and (gap < 0.5).all()


def test_two_clusters_and_between() -> None:
    """Clusters are N(+-(1, 1), spread^2): KS at 1e-6; nothing of ``between`` is centred within 3 spreads."""
    data = generated.two_clusters(n_cluster=500, n_test=400, spread=0.1, noise=0.1, seed=1, **PLAIN)
    side = np.sign(data.train.x.sum(axis=1))
    assert (side > 0).sum() == 500
    for column in data.train.x.T:
        assert stats.kstest((column - side) / 0.1, "norm").pvalue > 1e-6
    # along the diagonal the sd is spread / sqrt 2 about a centre at most 0.7: 6 of them end at 1.13
    assert np.abs(data.shifted["between"].x.mean(axis=1)).max() < 0.7 + 6 * 0.1 / np.sqrt(2)
    with pytest.raises(ConfigError, match=r"data\.spread=0\.4"):
        generated.two_clusters(n_cluster=5, n_test=4, spread=0.4, noise=0.1, seed=1, **PLAIN)


def test_heteroscedastic_noise_follows_its_formula() -> None:
    """(y - 7 sin x) / (3 |cos(x/2)|) is N(0, 1): KS at 1e-6, where the noise is not near zero (> 0.05)."""
    data = generated.heteroscedastic_sine(n=2000, n_test=2000, seed=5, **PLAIN)
    assert data.test is not None and data.x_scaler is not None and data.y_scaler is not None
    x = data.x_scaler.original(data.test.x)[:, 0].astype(float)
    y = data.y_scaler.original(data.test.y).astype(float)
    sd = 3 * np.abs(np.cos(x / 2))
    z = ((y - 7 * np.sin(x)) / sd)[sd > 0.05]
    assert stats.kstest(z, "norm").pvalue > 1e-6


def test_seed_changes_generated_rows() -> None:
    """The same seed repeats bit for bit, another one does not."""
    one, two, other = (generated.linear_regression(n=20, center=0.0, half_width=5.0, seed=s) for s in (0, 0, 1))
    assert one.checksum == two.checksum != other.checksum
    with pytest.raises(ConfigError, match=r"data\.n=0 must be positive"):
        generated.linear_regression(n=0, center=0.0, half_width=5.0, seed=0)


def test_eight_schools_is_the_published_table() -> None:
    """Effects and standard errors of Rubin (1981), in points."""
    data = schools.eight_schools()
    assert data.train.y.tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert data.train.x[:, 0].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    assert data.test is None and data.x_scaler is None


def test_braking_follows_its_law_beyond_training_speeds() -> None:
    """Residuals of v^2 / (2 mu g) are N(0, noise^2) in and out of range (KS, 1e-6); speeds stay in their intervals."""
    data = physics.braking(n=1000, n_test=1000, friction=0.7, noise=1.0, seed=2, **PLAIN)
    assert data.test is not None and data.x_scaler is not None and data.y_scaler is not None
    for rows, (low, high) in ((data.test, (5, 25)), (data.shifted["fast"], (25, 40))):
        v = data.x_scaler.original(rows.x)[:, 0].astype(float)
        assert v.min() > low - 1e-4 and v.max() < high + 1e-4
        residual = data.y_scaler.original(rows.y) - v**2 / (2 * 0.7 * 9.81)
        assert stats.kstest(residual, "norm").pvalue > 1e-6


def test_pendulum_equals_the_equation_of_motion() -> None:
    """The change of velocity minus its law is the noise (KS, 1e-6); halves of the circle do not mix."""
    data = physics.pendulum(n=500, n_test=1000, noise=0.1, seed=2, **PLAIN)
    assert data.test is not None and data.x_scaler is not None and data.y_scaler is not None
    for rows, sign in ((data.test, -1), (data.shifted["upright"], 1)):
        x = data.x_scaler.original(rows.x).astype(float)
        assert (sign * x[:, 0] > -1e-5).all() and np.abs(x[:, 2]).max() < 4.001
        np.testing.assert_allclose(x[:, 0] ** 2 + x[:, 1] ** 2, 1.0, atol=1e-4)
        law = (15.0 * x[:, 1] + 3.0 * x[:, 3]) * 0.05
        assert stats.kstest((data.y_scaler.original(rows.y) - law) / 0.1, "norm").pvalue > 1e-6


def test_25_gaussians() -> None:
    """The log density integrates to one (grid sum of a smooth function: exact to 1e-6) and equals scipy's mixture.

    Draws: counts at the centres are multinomial, chi-square at 1e-6; offsets are normal, KS at 1e-6.
    """
    data = density.gaussians_25(spacing=2.0, variance=0.03, n_test=5000, seed=1)
    assert data.task == "density" and data.train.x.shape == (0, 2) and data.num_outputs == 0 and data.test is not None
    side = np.arange(-6.0, 6.0, 0.05)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    total = np.exp(density.log_density(grid, spacing=2.0, variance=0.03)).sum() * 0.05**2
    assert total == pytest.approx(1.0, abs=1e-6)
    points = data.test.x[:50].astype(float)
    pdf = np.mean([stats.multivariate_normal(m, 0.03).pdf(points) for m in density.means(2.0)], axis=0)
    # float32 holds points to 2e-7, and the gradient of the log density is at most about 6 / sd = 35
    np.testing.assert_allclose(data.test.y[:50], np.log(pdf), rtol=1e-5, atol=1e-4)
    nearest = ((data.test.x[:, None] - density.means(2.0)) ** 2).sum(-1).argmin(1)
    assert stats.chisquare(np.bincount(nearest, minlength=25)).pvalue > 1e-6
    offset = (data.test.x - density.means(2.0)[nearest]) / np.sqrt(0.03)
    assert stats.kstest(offset.ravel(), "norm").pvalue > 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: generated.linear_regression(n=20, center=0.0, half_width=5.0, seed=seed),
        lambda seed: generated.cosine_gap(n_cluster=9, n_test=9, noise=0.1, seed=seed, **PLAIN),
        lambda seed: generated.two_clusters(n_cluster=9, n_test=9, spread=0.1, noise=0.1, seed=seed, **PLAIN),
        lambda seed: generated.heteroscedastic_sine(n=9, n_test=9, seed=seed, **PLAIN),
        lambda seed: generated.two_moons(n=20, noise=0.1, seed=seed, split=0, test_fraction=0.1, **PLAIN),
        lambda seed: physics.braking(n=9, n_test=9, friction=0.7, noise=1.0, seed=seed, **PLAIN),
        lambda seed: physics.pendulum(n=9, n_test=9, noise=0.1, seed=seed, **PLAIN),
        lambda seed: density.gaussians_25(spacing=2.0, variance=0.03, n_test=9, seed=seed),
    ],
)
def test_a_negative_seed_is_refused(make: Any) -> None:
    """In every generated set, by one sentence that names the field; 0 is a seed."""
    make(0)
    with pytest.raises(ConfigError, match=r"^data\.seed=-1 is out of range: choose a whole number from 0 up\.$"):
        make(-1)
