"""Collections of examples that splits are drawn from: embedded digits, CIFAR-10, image folders, the user's own.

A pool knows its targets and a digest of each raw example, and loads the examples asked for; nothing else is decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError

Indices = NDArray[np.int64]
Targets = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Normalize:
    """Per channel: subtracted and divided, after scaling pixels to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised copy of [N, C, ...]."""
        if pixels.ndim < 2 or pixels.shape[1] not in (len(self.mean), 1) or len(self.mean) != len(self.std):
            raise DataError(
                f"normalize has {len(self.mean)} means and {len(self.std)} deviations",
                where=f"examples of shape {pixels.shape[1:]}",
                allowed="one of each per channel",
            )
        shape = (1, -1, *[1] * (pixels.ndim - 2))
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        return (pixels - mean) / std


class Pool(Protocol):
    """Examples a split can be drawn from."""

    @property
    def targets(self) -> Targets:
        """One per example, [N, ...]."""
        ...

    @property
    def digests(self) -> list[bytes]:
        """One per raw example; equal examples have equal digests."""
        ...

    def load(self, indices: Indices) -> NDArray[np.float32]:
        """The examples at `indices`, as the model takes them, [n, ...]."""
        ...


@dataclass(frozen=True)
class ArrayPool:
    """Examples in memory.

    Attributes:
        inputs: [N, ...] in the model's layout; uint8 means pixels 0..255, which are scaled to 0..1.
        targets: [N, ...].
        normalize: Applied last, or None.
    """

    inputs: NDArray[Any]
    targets: Targets
    normalize: Normalize | None = None

    @cached_property
    def digests(self) -> list[bytes]:
        """Digests of the raw examples."""
        return [hashlib.blake2b(np.ascontiguousarray(x).tobytes(), digest_size=16).digest() for x in self.inputs]

    def load(self, indices: Indices) -> NDArray[np.float32]:
        """The examples at `indices`."""
        raw = self.inputs[indices]
        scale = np.float32(255) if raw.dtype == np.uint8 else np.float32(1)
        inputs = np.ascontiguousarray(raw, np.float32) / scale
        return inputs if self.normalize is None else self.normalize(inputs)


@dataclass(frozen=True)
class ImagePool:
    """Image files, decoded when asked for: shorter side resized to `size`, centre cropped, RGB."""

    files: tuple[Path, ...]
    targets: Targets
    size: int
    normalize: Normalize

    @cached_property
    def digests(self) -> list[bytes]:
        """Digests of the files."""
        return [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in self.files]

    def load(self, indices: Indices) -> NDArray[np.float32]:
        """Images [n, 3, size, size]."""
        pixels = np.stack([_decode(self.files[i], self.size) for i in indices])
        return self.normalize(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


def _decode(path: Path, size: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # `fit` resizes the shorter side and crops the longer one around the centre.
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"not an image: {path}", where=str(error)) from error
    return np.asarray(fitted, np.uint8)


def pool_from(value: Any, where: str, normalize: Normalize | None = None) -> ArrayPool:
    """A pool out of what users have: a pair of arrays or tensors, or an iterable of such batches.

    Raises:
        DataError: it is none of these, or inputs and targets differ in number.
    """
    if isinstance(value, Sequence) and len(value) == 2 and not isinstance(value, (str, bytes)):
        inputs, targets = _array(value[0]), _array(value[1])
    else:
        inputs, targets = _joined(value, where)
    if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets):
        raise DataError(
            f"{where}: inputs and targets do not fit together",
            where=f"inputs {inputs.shape}, targets {targets.shape}",
            allowed="inputs [N, ...] and targets [N, ...]",
        )
    return ArrayPool(inputs, targets, normalize)


def _joined(batches: Any, where: str) -> tuple[NDArray[Any], Targets]:
    if isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
        raise DataError(
            f"{where} is a {type(batches).__name__}",
            allowed="a pair (inputs, targets) of arrays or tensors, or a loader of such batches",
        )
    pairs = []
    for batch in batches:
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise DataError(f"{where}: a batch is not a pair (inputs, targets)", where=f"found {type(batch).__name__}")
        pairs.append((_array(batch[0]), _array(batch[1])))
    if not pairs:
        raise DataError(f"{where} is empty")
    return np.concatenate([inputs for inputs, _ in pairs]), np.concatenate([targets for _, targets in pairs])


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
