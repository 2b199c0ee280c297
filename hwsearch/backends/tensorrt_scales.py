"""Symmetric quantisers for TensorRT: int8, fp8 (E4M3) and blocks of int4.

Scales are rounded to the float format they are stored in before anything is divided by them, so that a network in fp16
or bf16 loses nothing to the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.qdq import along
from hwsearch.backends.rewrite import invalid
from hwsearch.types import TensorRange

LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
"""Largest stored value used; symmetric, so int8's -128 and int4's -8 are not."""

BLOCKS = (128, 64)
"""Weights that share a scale in int4, the preferred number first."""

_SMALLEST = {"fp32": 2.0**-126, "bf16": 2.0**-126, "fp16": 2.0**-20}  # fp16 holds 2⁻²⁰ to 6 %, less below


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A quantised constant: its stored values and its scales; real = values * scale."""

    values: NDArray[Any]
    scale: NDArray[np.float32]


def activation_scale(interval: TensorRange, kind: str, float_format: str) -> NDArray[np.float32]:
    """The one scale, a true scalar, with which `kind` covers `interval`; 1 for a tensor that is always zero."""
    widest = max(-interval.low, interval.high, 0.0)
    return representable(np.array(widest / LARGEST[kind]), float_format)


def quantize_channels(weight: NDArray[np.float32], axis: int, kind: str, float_format: str) -> Stored:
    """A weight in int8 or fp8 with one scale per channel of `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = representable(np.abs(weight).max(axis=others) / LARGEST[kind], float_format)
    return Stored(values=_store(weight / scale.reshape(along(axis, weight.ndim)), kind), scale=scale)


def quantize_blocks(weight: NDArray[np.float32], size: int, float_format: str) -> Stored:
    """A weight [inputs, outputs] in int4 with scales [inputs / size, outputs]."""
    blocks = weight.reshape(-1, size, weight.shape[1])
    scale = representable(np.abs(blocks).max(axis=1) / LARGEST["int4"], float_format)
    return Stored(values=_store(blocks / scale[:, None], "int4").reshape(weight.shape), scale=scale)


def block_size(inputs: int, layer: str) -> int:
    """How many weights share a scale.

    Raises:
        EvaluationError: the layer's inputs do not divide into blocks.
    """
    for size in BLOCKS:
        if inputs % size == 0:
            return size
    raise invalid(f"the {inputs} inputs of `{layer}` do not divide into blocks of {BLOCKS[-1]}, which int4 needs")


def zero_points(kind: str) -> NDArray[Any]:
    """A scalar zero of the stored type."""
    return np.zeros((), _dtype(kind))


def representable(scale: NDArray[Any], float_format: str) -> NDArray[np.float32]:
    """The nearest scales that `float_format` holds; 1 where the scale is zero."""
    import ml_dtypes

    dtype = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}.get(float_format, np.float32)
    rounded = np.maximum(scale, _SMALLEST[float_format]).astype(dtype).astype(np.float32)
    return np.where(scale > 0, rounded, np.float32(1)).astype(np.float32)


def _store(scaled: NDArray[Any], kind: str) -> NDArray[Any]:
    clipped = np.clip(scaled, -LARGEST[kind], LARGEST[kind])
    stored: NDArray[Any] = (clipped if kind == "fp8" else np.rint(clipped)).astype(_dtype(kind))
    return stored


def _dtype(kind: str) -> Any:
    import ml_dtypes

    return {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "int4": ml_dtypes.int4}[kind]
