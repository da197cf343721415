"""Shifted versions of images (n, h, w) with values in [0, 1]."""

from collections.abc import Callable, Mapping

import numpy as np


def rotate(images: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate counter-clockwise about the centre, bilinear, zeros from outside.

    The pixel at offset r from the centre takes the value at R(-degrees) r.
    """
    n, height, width = images.shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    centre_row, centre_column = (height - 1) / 2.0, (width - 1) / 2.0
    angle = np.deg2rad(degrees)
    # x to the right, y up, so y = -row
    x, y = columns - centre_column, centre_row - rows
    from_x, from_y = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    # 1e-9: a quarter turn lands on pixels, and must not fall off the grid by a rounding error
    row, column = np.round(centre_row - from_y, 9), np.round(centre_column + from_x, 9)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    flat = np.ascontiguousarray(images.reshape(n, -1).T)  # a pixel a row: gathers are contiguous copies
    out = np.zeros_like(flat)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = top + i, left + j
        weight = (1.0 - np.abs(row - r)) * (1.0 - np.abs(column - c))
        weight = np.where((r >= 0) & (r < height) & (c >= 0) & (c < width), weight, 0.0)
        index = np.clip(r, 0, height - 1) * width + np.clip(c, 0, width - 1)
        used = np.flatnonzero(weight)
        out[used] += flat[index.ravel()[used]] * weight.ravel()[used, None].astype(images.dtype)
    return np.ascontiguousarray(out.T).reshape(images.shape)


def noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add N(0, 0.4^2) to each pixel and clip to [0, 1]."""
    return np.clip(images + np.float32(0.4) * rng.standard_normal(images.shape, dtype=np.float32), 0.0, 1.0)


def blur(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of sd 1.5 pixels, zeros outside."""
    _, height, width = images.shape

    def kernel(size: int) -> np.ndarray:
        # one axis as a (size, size) matrix; normalised over the unbounded line, so brightness leaks at the border
        offset = np.arange(size)[:, None] - np.arange(size)[None, :]
        line = np.arange(-30, 31)
        return (np.exp(-0.5 * (offset / 1.5) ** 2) / np.exp(-0.5 * (line / 1.5) ** 2).sum()).astype(images.dtype)

    return np.asarray(kernel(height) @ images @ kernel(width).T)


def contrast(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink each image to 0.3 of its contrast about its own mean."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + np.float32(0.3) * (images - mean)


def translate(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move by 4 pixels down and right, zeros from outside."""
    out = np.zeros_like(images)
    out[:, 4:, 4:] = images[:, :-4, :-4]
    return out


CORRUPTIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "translate": translate,
}
"""Fixed corruptions by name. One severity each, of the middle of MNIST-C's (Mu & Gilmer, 2019)."""
