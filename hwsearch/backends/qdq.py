"""Graph surgery the emitters share: find layers, quantise weights, put quantise/dequantise pairs on tensors.

Nothing here knows a runtime. Which tensors are quantised, and in which format, is each backend's own policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwsearch.errors import EvaluationError
from hwsearch.types import TensorRange

ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operations that runtimes fold into the convolution, addition or product before them."""

_INT32_HEADROOM = 2.0**30
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """The affine map of one activation tensor: real = scale * (stored - zero_point)."""

    scale: float
    zero_point: int
    dtype: type[np.uint8] | type[np.int8]


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
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    stored = np.clip(np.rint(weight / scale.reshape(shape)), -levels, levels)
    return stored.astype(np.int8), scale


class Graph:
    """A private copy of a model, indexed by tensor, that collects rewrites until `finish`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.initializers = {t.name: t for t in graph.initializer}
        self.inputs = [v.name for v in graph.input if v.name not in self.initializers]
        self.outputs = [v.name for v in graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
        self._constants: list[onnx.NodeProto] = []
        self._pairs: dict[str, list[onnx.NodeProto]] = {}

    # ------------------------------------------------------------------ reading

    def layers(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """Nodes of these layers, in execution order.

        Raises:
            EvaluationError: the model has no such node.
        """
        wanted = set(names)
        found = [node for node in self.nodes if node.name in wanted]
        missing = wanted - {node.name for node in found}
        if missing:
            raise invalid(f"the model has no layer `{min(missing)}`")
        return found

    def folded_output(self, node: onnx.NodeProto) -> str:
        """The first tensor after `node` that its runtime kernel writes: past an activation that only it feeds."""
        name: str = node.output[0]
        readers = self.consumers[name]
        if name not in self.outputs and len(readers) == 1 and readers[0].op_type in ACTIVATIONS:
            return str(readers[0].output[0])
        return name

    def constant(self, name: str, layer: str) -> NDArray[Any]:
        """Value of an initialiser that `layer` reads.

        Raises:
            EvaluationError: the tensor is computed, not constant.
        """
        if name not in self.initializers:
            raise invalid(f"the weight `{name}` of layer `{layer}` is not a constant of the model")
        return numpy_helper.to_array(self.initializers[name])

    # ------------------------------------------------------------------ rewriting

    def quantize_activation(self, name: str, quantizer: Quantizer) -> None:
        """Put a quantise/dequantise pair on a tensor; all its consumers read the dequantised values."""
        source = self._release(name) if name in self.outputs else name
        target = name if name in self.outputs else f"{name}_dequantized"
        scale = self._store(f"{name}_scale", np.array(quantizer.scale, np.float32))
        zero = self._store(f"{name}_zero_point", np.array(quantizer.zero_point, quantizer.dtype))
        stored = f"{name}_quantized"
        self._pairs[source] = [
            helper.make_node("QuantizeLinear", [source, scale, zero], [stored], name=f"{name}_quantize"),
            helper.make_node("DequantizeLinear", [stored, scale, zero], [target], name=f"{name}_dequantize"),
        ]
        if target != name:
            for node in self.consumers[name]:
                node.input[:] = [target if i == name else i for i in node.input]

    def _release(self, name: str) -> str:
        """Free the name of a graph output, so that the dequantised tensor can carry it."""
        self.producer[name].output[:] = [f"{name}_float" if o == name else o for o in self.producer[name].output]
        return f"{name}_float"

    def use_domain(self, domain: str, version: int) -> None:
        """Declare an operator set beside ONNX's own."""
        if domain not in {opset.domain for opset in self.model.opset_import}:
            self.model.opset_import.append(helper.make_opsetid(domain, version))

    def quantize_layer(self, node: onnx.NodeProto, levels: int, input_scale: float | None) -> None:
        """Store a layer's weight as int8, and its bias as int32 in steps of input scale times weight scale.

        Args:
            node: Conv, ConvTranspose, Gemm or MatMul.
            levels: See `quantize_weight`.
            input_scale: None leaves the bias in floating point.
        """
        axis = output_axis(node)
        weight = self.constant(node.input[1], node.name)
        has_bias = len(node.input) > 2 and node.input[2] != "" and input_scale is not None
        bias = self.constant(node.input[2], node.name).reshape(-1) if has_bias else np.zeros(1, np.float32)
        step = input_scale or 1.0
        stored, scale = quantize_weight(weight, axis, levels, np.abs(bias) / (step * _INT32_HEADROOM))
        self._dequantize(node, 1, stored, scale, axis)
        if has_bias:
            bias_scale = (np.float32(step) * scale).astype(np.float32)
            self._dequantize(node, 2, np.rint(bias / bias_scale).astype(np.int32), bias_scale, 0)

    def _dequantize(
        self, node: onnx.NodeProto, index: int, stored: NDArray[Any], scale: NDArray[np.float32], axis: int
    ) -> None:
        """Feed input `index` of `node` from a stored integer constant through its own DequantizeLinear."""
        name = f"{node.name}.{'weight' if index == 1 else 'bias'}"
        inputs = [
            self._store(f"{name}_quantized", stored),
            self._store(f"{name}_scale", scale),
            self._store(f"{name}_zero_point", np.zeros(scale.shape, stored.dtype)),
        ]
        output = f"{name}_dequantized"
        self._constants.append(
            helper.make_node("DequantizeLinear", inputs, [output], name=f"{name}_dequantize", axis=axis)
        )
        node.input[index] = output

    def _store(self, name: str, value: NDArray[Any]) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def finish(self) -> onnx.ModelProto:
        """The rewritten model in execution order, without unread constants and the exporter's notes on its nodes."""
        ordered = list(self._constants)
        for name in self.inputs:
            ordered += self._pairs.get(name, [])
        for node in self.nodes:
            ordered.append(node)
            for name in node.output:
                ordered += self._pairs.get(name, [])
        graph = self.model.graph
        read = {name for node in ordered for name in node.input} | set(self.outputs)
        kept = [tensor for name, tensor in self.initializers.items() if name in read]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        for node in nodes:
            del node.metadata_props[:]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        return self.model


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its output channels."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 1


def check_precisions(precision: Mapping[str, str], allowed: Iterable[str], backend: str) -> None:
    """Refuse a precision a backend cannot express.

    Raises:
        EvaluationError: names the first such layer.
    """
    known = sorted(allowed)
    for layer, name in precision.items():
        if name not in known:
            raise invalid(f"{backend} cannot compute layer `{layer}` in {name}; it offers {', '.join(known)}")


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


def invalid(message: str) -> EvaluationError:
    """The error of a model or a request that cannot be lowered."""
    return EvaluationError(message, stage="lower", kind="invalid")
