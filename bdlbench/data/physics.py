"""Data sets that are generated from a law of mechanics, with shifted inputs outside the range of the training rows."""

import numpy as np

from bdlbench.data.dataset import Dataset, make_dataset
from bdlbench.data.generated import check_positive
from bdlbench.data.splits import cut, generator

GRAVITY = 9.81  # m/s^2


def braking(
    *,
    n: int,
    n_test: int,
    friction: float,
    noise: float,
    seed: int,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Braking distance d = v^2 / (2 mu g) + noise e, in metres, from the speed v in m/s; mu is ``friction``.

    e ~ N(0, 1) and g = 9.81 m/s^2. Training and test speeds are uniform on [5, 25]. Those of ``shifted["fast"]`` are
    uniform on [25, 40], where the model must extrapolate.
    """
    check_positive(n=n, n_test=n_test, friction=friction, noise=noise)
    rng = generator(seed)

    def draw(low: float, high: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        v = rng.uniform(low, high, size)
        return v[:, None], v**2 / (2.0 * friction * GRAVITY) + noise * rng.standard_normal(size)

    x, y = draw(5.0, 25.0, n)
    test, fast = draw(5.0, 25.0, n_test), draw(25.0, 40.0, n_test)
    train, validation = cut(np.arange(n), validation_fraction=validation_fraction, n_train=n_train)
    return make_dataset(
        standardize=standardize,
        name="braking",
        task="regression",
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None,
        test=test,
        shifted={"fast": fast},
        feature_names=("speed",),
        target_name="distance",
        notes=(f"noise sd {noise} m",),
    )


def pendulum(
    *,
    n: int,
    n_test: int,
    noise: float,
    seed: int,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """One-step transitions of a pendulum that is driven by a torque, as a model-based controller learns them.

    The inputs are (cos theta, sin theta, omega, u), where theta = 0 is upright. The target is the change of the angular
    velocity in a step of dt = 0.05 s, d omega = (3 g / (2 l) sin theta + 3 u / (m l^2)) dt + noise e in rad/s, with
    e ~ N(0, 1), g = 10 m/s^2, m = 1 kg and l = 1 m. This is the rod of Gymnasium's ``Pendulum-v1`` without the clipping
    at 8 rad/s. omega is uniform on [-4, 4] rad/s and u on [-2, 2] N m. theta is uniform on the lower half circle
    (cos theta < 0) for training and test rows, and on the upper half circle for ``shifted["upright"]``.
    """
    check_positive(n=n, n_test=n_test, noise=noise)
    rng = generator(seed)

    def draw(centre: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        theta = centre + rng.uniform(-np.pi / 2.0, np.pi / 2.0, size)
        omega, torque = rng.uniform(-4.0, 4.0, size), rng.uniform(-2.0, 2.0, size)
        x = np.stack([np.cos(theta), np.sin(theta), omega, torque], axis=1)
        return x, (15.0 * np.sin(theta) + 3.0 * torque) * 0.05 + noise * rng.standard_normal(size)

    x, y = draw(np.pi, n)
    test, upright = draw(np.pi, n_test), draw(0.0, n_test)
    train, validation = cut(np.arange(n), validation_fraction=validation_fraction, n_train=n_train)
    return make_dataset(
        standardize=standardize,
        name="pendulum",
        task="regression",
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None,
        test=test,
        shifted={"upright": upright},
        feature_names=("cos_theta", "sin_theta", "omega", "torque"),
        target_name="d_omega",
        notes=(f"noise sd {noise} rad/s",),
    )
