"""Data sets that are generated from a known function, so that a prediction can be compared with the truth."""

import numpy as np

from bdlbench.data.dataset import Dataset, make_dataset, split_table
from bdlbench.data.splits import cut, generator, random_split
from bdlbench.data.table import make_table
from bdlbench.errors import ConfigError


def check_positive(**values: float) -> None:
    """Raise a ConfigError that names the first value that is not above 0, if there is one."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"data.{name}={value} must be positive: choose a value above 0.")


def linear_regression(*, n: int, center: float, half_width: float, seed: int) -> Dataset:
    """Y = 3 x + 2 + 0.5 e, e ~ N(0, 1), at n equally spaced points on [center - half_width, center + half_width].

    Test rows are a new draw at the same points. Nothing is standardised, because the priors of the example are stated
    in the units of x and y. With ``center=0`` slope and intercept are independent in the posterior given
    the noise scale, so a mean-field guide loses no correlation between them. With ``center=5`` (the interval [0, 10]
    for ``half_width=5``) they are correlated, which a mean-field guide cannot represent.
    """
    check_positive(n=n, half_width=half_width)
    rng = generator(seed)
    x = np.linspace(center - half_width, center + half_width, n)[:, None]

    def draw() -> tuple[np.ndarray, np.ndarray]:
        return x, 3.0 * x[:, 0] + 2.0 + 0.5 * rng.standard_normal(n)

    return make_dataset(
        name="linear_regression", task="regression", train=draw(), test=draw(), standardize=False,
        feature_names=("x",), notes=("not standardised", "noise sd 0.5"),
    )  # fmt: skip


def cosine_gap(
    *, n_cluster: int, n_test: int, noise: float, seed: int, validation_fraction: float, n_train: int | None
) -> Dataset:
    """Y = cos(4 x + 0.8) + noise e with x uniform on [-1, -0.7] and on [0.5, 1] (Foong et al., 2019, arXiv 1906.11537).

    Each interval has ``n_cluster`` points for training and validation and ``n_test / 2``, rounded up, for testing.
    ``shifted["gap"]`` has ``n_test`` points from (-0.7, 0.5), where a good posterior is uncertain. Nothing is
    standardised.
    """
    check_positive(n_cluster=n_cluster, n_test=n_test, noise=noise)
    rng = generator(seed)

    def draw(*intervals: tuple[float, float], n: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.concatenate([rng.uniform(low, high, n) for low, high in intervals])
        return x[:, None], np.cos(4.0 * x + 0.8) + noise * rng.standard_normal(len(x))

    outside = ((-1.0, -0.7), (0.5, 1.0))
    x, y = draw(*outside, n=n_cluster)
    test = draw(*outside, n=(n_test + 1) // 2)
    gap = draw((-0.7, 0.5), n=n_test)
    train, validation = cut(rng.permutation(len(y)), validation_fraction=validation_fraction, n_train=n_train)
    return make_dataset(
        name="cosine_gap", task="regression", train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None, test=test, shifted={"gap": gap},
        standardize=False, feature_names=("x",), notes=("not standardised", f"noise sd {noise}"),
    )  # fmt: skip


def two_clusters(
    *,
    n_cluster: int,
    n_test: int,
    spread: float,
    noise: float,
    seed: int,
    validation_fraction: float,
    n_train: int | None,
) -> Dataset:
    """Two clusters in the plane with no points between them, as :func:`cosine_gap` in two dimensions.

    x ~ N(+-(1, 1), spread^2 I), with ``n_cluster`` points for training and validation and ``n_test / 2``, rounded up,
    for testing at each centre; y = cos(2 (x1 + x2) + 0.8) + noise e. A point of ``shifted["between"]`` is normal with
    sd ``spread`` about a point (t, t) of the segment between the centres, t uniform on (-1 + 3 spread, 1 - 3 spread).
    Mean-field and dropout posteriors are overconfident there (Foong et al., 2020, arXiv 1909.00719). Nothing is
    standardised.
    """
    check_positive(n_cluster=n_cluster, n_test=n_test, noise=noise, spread=spread)
    if spread > 0.25:
        raise ConfigError(f"data.spread={spread} lets the clusters meet: choose at most 0.25.")
    rng = generator(seed)

    def draw(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = along[:, None] + spread * rng.standard_normal((len(along), 2))
        return x, np.cos(2.0 * x.sum(axis=1) + 0.8) + noise * rng.standard_normal(len(x))

    x, y = draw(np.repeat([-1.0, 1.0], n_cluster))
    test = draw(np.repeat([-1.0, 1.0], (n_test + 1) // 2))
    reach = 1.0 - 3.0 * spread
    between = draw(rng.uniform(-reach, reach, n_test))
    train, validation = cut(rng.permutation(len(y)), validation_fraction=validation_fraction, n_train=n_train)
    return make_dataset(
        name="two_clusters", task="regression", train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None, test=test,
        shifted={"between": between}, standardize=False, feature_names=("x1", "x2"),
        notes=("not standardised", f"noise sd {noise}"),
    )  # fmt: skip


def heteroscedastic_sine(
    *, n: int, n_test: int, seed: int, validation_fraction: float, n_train: int | None, standardize: bool | str = True
) -> Dataset:
    """Y = 7 sin(x) + 3 |cos(x / 2)| e: the noise depends on the input (Depeweg et al., 2018, arXiv 1710.07283).

    x is drawn from N(-4, 0.4^2), N(0, 0.9^2) or N(4, 0.4^2) with equal probability, so that the density of x, the noise
    and the function all vary with x. Test rows are a new draw.
    """
    check_positive(n=n, n_test=n_test)
    rng = generator(seed)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        component = rng.integers(3, size=size)
        x = np.array([-4.0, 0.0, 4.0])[component] + np.array([0.4, 0.9, 0.4])[component] * rng.standard_normal(size)
        return x[:, None], 7.0 * np.sin(x) + 3.0 * np.abs(np.cos(x / 2.0)) * rng.standard_normal(size)

    x, y = draw(n)
    test = draw(n_test)
    train, validation = cut(np.arange(n), validation_fraction=validation_fraction, n_train=n_train)
    return make_dataset(
        standardize=standardize, name="heteroscedastic_sine", task="regression", train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None, test=test, feature_names=("x",),
        notes=("noise sd 3 |cos(x / 2)|",),
    )  # fmt: skip


def two_moons(
    *,
    n: int,
    noise: float,
    seed: int,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Two interleaving half circles in the plane, n points with isotropic Gaussian noise of sd ``noise``.

    With t equally spaced on [0, pi], class 0 lies on (cos t, sin t) and class 1 on (1 - cos t, 0.5 - sin t), as in
    scikit-learn's ``make_moons``.
    """
    check_positive(n=n, noise=noise)
    rng = generator(seed)
    num_upper = n // 2
    upper, lower = np.linspace(0.0, np.pi, num_upper), np.linspace(0.0, np.pi, n - num_upper)
    x = np.concatenate(
        [np.stack([np.cos(upper), np.sin(upper)], 1), np.stack([1.0 - np.cos(lower), 0.5 - np.sin(lower)], 1)]
    )
    x += noise * rng.standard_normal(x.shape)
    y = np.repeat(np.array([0, 1], dtype=np.int32), [num_upper, n - num_upper])
    table = make_table(x, y, feature_names=("x1", "x2"), target_name="moon", class_names=("upper", "lower"))
    rows = random_split(
        n, split=split, test_fraction=test_fraction, validation_fraction=validation_fraction, n_train=n_train
    )
    return split_table("two_moons", "classification", table, rows, standardize=standardize)
