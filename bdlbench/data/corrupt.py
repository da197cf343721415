"""Corruptions of images (n, h, w) with values in [0, 1], which make shifted test sets. They keep the shape."""

from collections.abc import Callable, Mapping

import numpy as np


def rotate(images: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate counter-clockwise about the centre with bilinear interpolation. Pixels from outside are zero."""
    from scipy import ndimage

    return np.asarray(ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant"))


def noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add N(0, 0.4^2) to each pixel and clip to [0, 1]."""
    return np.clip(images + np.float32(0.4) * rng.standard_normal(images.shape, dtype=np.float32), 0.0, 1.0)


def blur(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian kernel of sd 1.5 pixels, which is cut off at 20 sds. Pixels from outside are zero."""
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter(images, (0.0, 1.5, 1.5), mode="constant", truncate=20.0))


def contrast(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply the deviation of each pixel from the mean of its image by 0.3."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + np.float32(0.3) * (images - mean)


def translate(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move each image by 4 pixels down and 4 to the right. Pixels from outside are zero."""
    out = np.zeros_like(images)
    out[:, 4:, 4:] = images[:, :-4, :-4]
    return out


CORRUPTIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "translate": translate,
}
"""The corruptions by name. Each has one severity, in the middle of those of MNIST-C (Mu & Gilmer, 2019)."""
