"""Quantisers, and the quantise/dequantise form of a quantised model.

Nothing here knows a runtime: which tensors are quantised, and in which format, is each backend's own policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hwsearch.backends.rewrite import Graph, invalid
from hwsearch.types import TensorRange

_INT32_HEADROOM = 2.0**30
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """The affine map of one activation tensor: real = scale * (stored - zero_point).

    `steps` below 255 leaves part of the 8-bit container unused: values of fewer bits.
    """

    scale: float
    zero_point: int
    dtype: type[np.uint8] | type[np.int8]
    steps: int = 255


def asymmetric(interval: TensorRange) -> Quantizer:
    """The uint8 quantiser that covers `interval` and represents 0 exactly; zero point 0 if nothing is negative."""
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    scale = _scale(high - low, 255)
    return Quantizer(scale=scale, zero_point=int(np.clip(round(-low / scale), 0, 255)), dtype=np.uint8)


def symmetric(interval: TensorRange) -> Quantizer:
    """The zero-point-0 quantiser that covers `interval`: uint8 if nothing is negative, else int8."""
    if interval.low >= 0:
        return Quantizer(scale=_scale(interval.high, 255), zero_point=0, dtype=np.uint8)
    widest = max(-interval.low * 127 / 128, interval.high)
    return Quantizer(scale=_scale(widest, 127), zero_point=0, dtype=np.int8)


def _scale(width: float, levels: int) -> float:
    return max(float(np.float32(width / levels)), _SMALLEST_SCALE) if width > 0 else 1.0


def quantize_weight(
    weight: NDArray[np.float32], axis: int, levels: int, smallest: NDArray[np.float32] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Stored int8 values in [-levels, levels], and one scale per channel of `axis`.

    Args:
        weight: Float weights.
        axis: Of the output channels.
        levels: 127, or 64 where products are accumulated in 16 bits.
        smallest: Lower bound of the scales, per channel; all-zero channels take it, or 1 if it is zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others) / levels, smallest).astype(np.float32)
    scale = np.where(scale < _SMALLEST_SCALE, np.float32(1), scale)
    stored = np.clip(np.rint(weight / scale.reshape(along(axis, weight.ndim))), -levels, levels)
    return stored.astype(np.int8), scale


def along(axis: int, rank: int) -> list[int]:
    """The shape in which a vector broadcasts along one axis of a tensor."""
    return [-1 if i == axis else 1 for i in range(rank)]


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its output channels."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 1


def quantize_activation(graph: Graph, name: str, quantizer: Quantizer) -> None:
    """Put a quantise/dequantise pair on a tensor; all its readers get the dequantised values."""
    scale = graph.store(f"{name}_scale", np.array(quantizer.scale, np.float32))
    zero = graph.store(f"{name}_zero_point", np.array(quantizer.zero_point, quantizer.dtype))
    stored = f"{name}_quantized"

    def pair(source: str, target: str) -> list[onnx.NodeProto]:
        clip = [] if quantizer.steps == 255 else [_clip(graph, source, f"{name}_clipped", quantizer)]
        inside = clip[0].output[0] if clip else source
        return [
            *clip,
            helper.make_node("QuantizeLinear", [inside, scale, zero], [stored], name=f"{name}_quantize"),
            helper.make_node("DequantizeLinear", [stored, scale, zero], [target], name=f"{name}_dequantize"),
        ]

    graph.insert_for_readers(name, pair)


def _clip(graph: Graph, source: str, target: str, quantizer: Quantizer) -> onnx.NodeProto:
    """Hold a tensor within the values of a quantiser that does not fill its container."""
    bounds = (-quantizer.zero_point * quantizer.scale, (quantizer.steps - quantizer.zero_point) * quantizer.scale)
    names = [
        graph.store(f"{target}_{end}", np.array(value, np.float32))
        for end, value in zip(("low", "high"), bounds, strict=True)
    ]
    return helper.make_node("Clip", [source, *names], [target], name=target)


def quantize_layer(graph: Graph, node: onnx.NodeProto, levels: int, input_scale: float) -> None:
    """Store a layer's weight as int8, and its bias as int32 in steps of input scale times weight scale.

    Args:
        graph: That holds the layer.
        node: Conv, ConvTranspose, Gemm or MatMul.
        levels: See `quantize_weight`.
        input_scale: Of the quantiser of the layer's input.
    """
    axis = output_axis(node)
    weight = graph.constant(node.input[1], node.name)
    place = graph.bias(node)
    bias = None if place is None else graph.constant(place[0].input[place[1]], node.name).reshape(-1)
    smallest = 0.0 if bias is None else np.abs(bias) / (input_scale * _INT32_HEADROOM)
    stored, scale = quantize_weight(weight, axis, levels, smallest)
    graph.feed(node, 1, [_dequantize(graph, f"{node.name}.weight", stored, scale, axis)])
    if place is not None and bias is not None:
        bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
        integers = np.rint(bias / bias_scale).astype(np.int32)
        graph.feed(*place, [_dequantize(graph, f"{node.name}.bias", integers, bias_scale, 0)])


def _dequantize(
    graph: Graph, name: str, stored: NDArray[np.int8] | NDArray[np.int32], scale: NDArray[np.float32], axis: int
) -> onnx.NodeProto:
    """The node that turns a stored integer constant into floats."""
    inputs = [
        graph.store(f"{name}_quantized", stored),
        graph.store(f"{name}_scale", scale),
        graph.store(f"{name}_zero_point", np.zeros(scale.shape, stored.dtype)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], name=f"{name}_dequantize", axis=axis)


def check_precisions(precision: Mapping[str, str], allowed: Iterable[str], backend: str) -> None:
    """Refuse a precision a backend cannot express.

    Raises:
        EvaluationError: names the first such layer.
    """
    known = sorted(allowed)
    for layer, name in precision.items():
        if name not in known:
            raise invalid(f"{backend} cannot compute layer `{layer}` in {name}; it offers {', '.join(known)}")


def int8_layers(precision: Mapping[str, str]) -> list[str]:
    """Names of the layers asked to compute in int8."""
    return [layer for layer, name in precision.items() if name == "int8"]


def range_of(ranges: Mapping[str, TensorRange], name: str) -> TensorRange:
    """The observed range of a tensor.

    Raises:
        EvaluationError: it was not observed, or is not finite.
    """
    interval = ranges.get(name)
    if interval is None:
        raise invalid(f"no range was observed for tensor `{name}`")
    if not (np.isfinite(interval.low) and np.isfinite(interval.high)):
        raise invalid(f"the range of tensor `{name}` is not finite: {interval.low} to {interval.high}")
    return interval
