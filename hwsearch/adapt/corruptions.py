"""What cameras and weather do to images: noise, blur, contrast, brightness, compression; seeded, in five strengths.

After Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019;
strengths are for 32×32 images. Written here; the published image sets are not needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import ConfigError, DataError, did_you_mean

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Images, kind: str, severity: int = 3, *, seed: int = 0) -> Images:
    """Corrupted copies of uint8 images [N, C, H, W]; the same for the same arguments.

    Args:
        images: Pixels 0 to 255.
        kind: A key of `CORRUPTIONS`.
        severity: 1, hardly visible, to 5.
        seed: Of the noise.

    Raises:
        ConfigError: an unknown kind or severity.
        DataError: the images are of another type or shape.
    """
    if kind not in CORRUPTIONS:
        raise ConfigError(
            f"unknown corruption `{kind}`", allowed=", ".join(CORRUPTIONS), hint=did_you_mean(kind, CORRUPTIONS)
        )
    if severity not in SEVERITIES:
        raise ConfigError(f"unknown severity {severity}", allowed="1 to 5")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"images are {images.dtype} of shape {images.shape}", allowed="uint8 [N, C, H, W]")
    function, strengths = CORRUPTIONS[kind]
    pixels = images.astype(np.float32) / np.float32(255)
    changed = function(pixels, strengths[severity - 1], np.random.default_rng(seed))
    return np.rint(np.clip(changed, 0, 1) * 255).astype(np.uint8)


def _noise(pixels: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    return pixels + rng.normal(0, deviation, pixels.shape).astype(np.float32)


def _blur(pixels: Floats, deviation: float, _rng: np.random.Generator) -> Floats:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(pixels, (0, 0, deviation, deviation), mode="nearest"), np.float32)


def _contrast(pixels: Floats, share: float, _rng: np.random.Generator) -> Floats:
    mean = pixels.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(mean + (pixels - mean) * np.float32(share), np.float32)


def _brightness(pixels: Floats, added: float, _rng: np.random.Generator) -> Floats:
    return pixels + np.float32(added)


def _jpeg(pixels: Floats, quality: float, _rng: np.random.Generator) -> Floats:
    from PIL import Image

    def stored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grey = image.shape[-1] == 1
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if grey else image).save(buffer, "JPEG", quality=int(quality))
        read = np.asarray(Image.open(buffer))
        return read[..., None] if grey else read

    whole = np.rint(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return (np.stack([stored(image) for image in whole]).transpose(0, 3, 1, 2) / 255).astype(np.float32)


def _invert(pixels: Floats, share: float, _rng: np.random.Generator) -> Floats:
    return pixels * np.float32(1 - share) + (1 - pixels) * np.float32(share)


CORRUPTIONS: dict[str, tuple[Callable[[Floats, float, np.random.Generator], Floats], tuple[float, ...]]] = {
    "noise": (_noise, (0.04, 0.06, 0.08, 0.10, 0.12)),
    "blur": (_blur, (0.4, 0.6, 0.8, 1.0, 1.4)),
    "contrast": (_contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": (_jpeg, (60, 40, 25, 15, 8)),
    "invert": (_invert, (0.2, 0.4, 0.6, 0.8, 1.0)),
}
"""Kind -> function and its strength at each severity. ``invert`` is no weather: statistics cannot undo it."""
