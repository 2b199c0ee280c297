"""Where TensorRT wants quantise/dequantise pairs: on what quantised layers read, and on the skip of residual additions.

Symmetric throughout: zero points are zero, activations are int8 or fp8 with one scale per tensor, weights have one per
output channel, biases stay in floating point. A convolution, the addition behind it and its ReLU become one int8 kernel
when the addition's other input is quantised and the convolution's own output is not. Every reader of a quantised tensor
gets a dequantise node of its own. Weight-only int4 layers keep 16-bit activations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import onnx
from onnx import helper

from hwsearch.backends.flow import Flow, Step, read_flow
from hwsearch.backends.qdq import check_precisions, output_axis, range_of
from hwsearch.backends.rewrite import Graph, invalid
from hwsearch.backends.tensorrt_float import Formats, convert, float_formats
from hwsearch.backends.tensorrt_scales import (
    Stored,
    activation_scale,
    block_size,
    quantize_blocks,
    quantize_channels,
    zero_points,
)
from hwsearch.types import TensorRange

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "w4a16")

QUANTIZED = frozenset({"int8", "fp8"})
"""Precisions whose activations are quantised."""

WEIGHT_ONLY = "w4a16"

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operations that may have a weight."""


def quantized_tensors(flow: Flow, precision: Mapping[str, str]) -> dict[str, str]:
    """Tensors to quantise -> ``int8`` or ``fp8``.

    Raises:
        EvaluationError: layers read one tensor in two formats.
    """
    found: dict[str, str] = {}
    layers = [step for step in flow.steps if precision.get(step.name) in QUANTIZED]
    for step in layers:
        wanted = precision[step.name]
        if found.setdefault(step.reads[0], wanted) != wanted:
            raise invalid(f"`{step.name}` reads in {wanted} what another layer reads in {found[step.reads[0]]}")
    outputs = {step.leaves for step in layers if not step.activated}
    readers = Counter(name for step in flow.steps for name in step.reads)
    fusible = {name for name in outputs if readers[name] == 1 and name != flow.output}
    depths = _depths(flow)
    for step in reversed(flow.steps):
        if step.op == "Add" and step.leaves in found and (skip := _skip(step, fusible, depths)) is not None:
            found.setdefault(skip, found[step.leaves])
    return found


def tensors_to_observe(model: onnx.ModelProto, precision: Mapping[str, str]) -> list[str]:
    """Tensors whose ranges `lower` needs, sorted."""
    graph = Graph(model)
    graph.layers(precision)  # refuses names the model lacks
    return sorted(quantized_tensors(read_flow(graph), precision))


def lower(model: onnx.ModelProto, precision: Mapping[str, str], ranges: Mapping[str, TensorRange]) -> onnx.ModelProto:
    """A copy of `model` in which every tensor has the type TensorRT is to compute it in; inputs and outputs stay fp32.

    Args:
        model: Float model whose nodes are named after the layers.
        precision: Layer -> one of `PRECISIONS`. What belongs to no layer takes the narrowest float format among them.
            With no layer named, the model is left as it is.
        ranges: Of the tensors named by `tensors_to_observe`.

    Raises:
        EvaluationError: an unknown precision, a layer or range that is missing, a range that is not finite, or a layer
            that has no such kernel.
    """
    check_precisions(precision, PRECISIONS, "tensorrt")
    graph = Graph(model)
    graph.layers(precision)  # refuses names the model lacks
    formats = float_formats(precision)
    tensors = quantized_tensors(read_flow(graph), precision)
    scales = {name: activation_scale(range_of(ranges, name), kind, formats.rest) for name, kind in tensors.items()}
    for node in graph.layers(name for name, wanted in precision.items() if wanted in QUANTIZED):
        weight = graph.constant(node.input[1], node.name)
        stored = quantize_channels(weight, output_axis(node), precision[node.name], formats.rest)
        _feed_weight(graph, node, stored, {"axis": output_axis(node)})
    for node in graph.layers(name for name, wanted in precision.items() if wanted == WEIGHT_ONLY):
        _quantize_weight_only(graph, node, formats)
    for name, scale in scales.items():
        _quantize_activation(graph, name, Stored(values=zero_points(tensors[name]), scale=scale))
    return convert(graph.finish(), formats) if precision else graph.finish()


def _depths(flow: Flow) -> dict[str, int]:
    """Tensor -> most layers on a way from the network's input."""
    depths: dict[str, int] = {}
    for step in flow.steps:
        depth = max(depths.get(name, 0) for name in step.reads) + (step.op in WEIGHTED)
        depths |= dict.fromkeys((step.writes, step.leaves), depth)
    return depths


def _skip(add: Step, fusible: Collection[str], depths: Mapping[str, int]) -> str | None:
    """The input of an addition to quantise so that it fuses into the quantised layer that writes the other one."""
    candidates = [name for name in add.reads if name in fusible]
    if add.constants or len(add.reads) != 2 or not candidates:
        return None
    last = max(candidates, key=lambda name: depths[name])
    return next(name for name in add.reads if name != last)


def _quantize_activation(graph: Graph, name: str, stored: Stored) -> None:
    """Put a quantise node on a tensor, and a dequantise node of its own before each reader."""
    scale = graph.store(f"{name}_scale", stored.scale)
    zero = graph.store(f"{name}_zero_point", stored.values)
    others = graph.consumers[name][1:] if name not in graph.outputs else []
    dequantized = [f"{name}_dequantized_{number}" for number in range(1, len(others) + 1)]

    def pair(source: str, target: str) -> list[onnx.NodeProto]:
        quantized = f"{name}_quantized"
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [quantized], name=f"{name}_quantize"),
            *(
                helper.make_node("DequantizeLinear", [quantized, scale, zero], [output], name=f"{output}_dequantize")
                for output in (target, *dequantized)
            ),
        ]

    graph.insert_for_readers(name, pair)
    for reader, own in zip(others, dequantized, strict=True):
        reader.input[:] = [own if entry == f"{name}_after" else entry for entry in reader.input]


def _feed_weight(graph: Graph, node: onnx.NodeProto, stored: Stored, attributes: dict[str, Any]) -> None:
    """Let a layer read its weight through a dequantise node."""
    name = f"{node.name}.weight"
    inputs = [graph.store(f"{name}_quantized", stored.values), graph.store(f"{name}_scale", stored.scale)]
    target = f"{name}_dequantized"
    graph.feed(
        node, 1, [helper.make_node("DequantizeLinear", inputs, [target], name=f"{name}_dequantize", **attributes)]
    )


def _quantize_weight_only(graph: Graph, node: onnx.NodeProto, formats: Formats) -> None:
    """Store a linear layer's weight as blocks of int4 along its inputs; a Gemm becomes a product and an addition."""
    if node.op_type not in ("Gemm", "MatMul"):
        raise invalid(f"weights alone in int4 exist for linear layers, and `{node.name}` is a {node.op_type}")
    weight = graph.constant(node.input[1], node.name)
    if node.op_type == "Gemm":
        weight = weight.T if output_axis(node) == 0 else weight
        _split_gemm(graph, node)
    size = block_size(weight.shape[0], node.name)
    stored = quantize_blocks(weight, size, formats.of(node.name))
    _feed_weight(graph, node, stored, {"axis": 0, "block_size": size})


def _split_gemm(graph: Graph, node: onnx.NodeProto) -> None:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        raise invalid(f"`{node.name}` scales or transposes its inputs, which weights in int4 do not allow")
    node.op_type = "MatMul"
    del node.attribute[:]
    if len(node.input) > 2:
        bias, output = node.input[2], node.output[0]
        del node.input[2:]
        graph.insert_behind(
            node,
            output,
            f"{output}_unbiased",
            lambda source, target: [helper.make_node("Add", [source, bias], [target], name=f"{node.name}.bias_add")],
        )
