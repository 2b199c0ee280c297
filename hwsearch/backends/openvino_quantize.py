"""Where OpenVINO's CPU plugin wants quantisers, in the form its own quantiser (NNCF) leaves behind.

FakeQuantize on what int8 layers read and on both sides of a residual addition, so that the addition fuses into the
convolution; symmetric, without zero points. A quantiser is moved up past operations that only move values, for these
then run on int8 as well. Weights are int8 constants, converted and scaled per channel; biases stay in floating point
and are written as additions, which keeps the converter from deriving their shape at run time.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from hwsearch.backends.flow import Flow, Step, read_flow
from hwsearch.backends.qdq import (
    Quantizer,
    along,
    check_precisions,
    int8_layers,
    output_axis,
    quantize_weight,
    range_of,
    symmetric,
)
from hwsearch.backends.rewrite import Graph, invalid
from hwsearch.types import TensorRange

PRECISIONS = ("fp32", "bf16", "int8")

MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""Operations that move values without changing them: quantised before instead of behind."""

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
"""Operations quantised before and behind."""

_DOMAIN = "org.openvinotoolkit"
_FAKE_QUANTIZE_LEVELS = 256


def quantized_tensors(flow: Flow, layers: Container[str]) -> dict[str, str]:
    """Tensors to quantise when `layers` are int8 -> the tensor whose observed range each takes."""
    int8 = [step for step in flow.steps if step.name in layers]
    found: dict[str, str] = {step.reads[0]: step.reads[0] for step in int8}
    written = {step.writes for step in int8}
    for step in flow.steps:
        if step.op == "Add" and not step.constants and written.union(found).issuperset(step.reads):
            found.update(zip(step.reads, step.reads, strict=True))
    for step in reversed(flow.steps):
        if step.writes in found:
            _move_up(step, found)
    return found


def _move_up(step: Step, found: dict[str, str]) -> None:
    """Quantise what `step` reads, given that its output is quantised; all that a Concat joins takes one scale."""
    if step.op in MOVES:
        del found[step.writes]
        found.setdefault(step.reads[0], step.reads[0])
    elif step.op in POOLS:
        found.setdefault(step.reads[0], step.reads[0])
    elif step.op == "Concat" and not step.constants:
        del found[step.writes]
        found.update(dict.fromkeys(step.reads, step.writes))


def observed_tensors(flow: Flow, precision: Mapping[str, str]) -> set[str]:
    """Tensors whose ranges `lower` needs."""
    return set(quantized_tensors(flow, frozenset(int8_layers(precision))).values())


def lower(
    model: onnx.ModelProto, precision: Mapping[str, str], ranges: Mapping[str, TensorRange], *, levels: int
) -> onnx.ModelProto:
    """A copy of `model` with quantisers, using OpenVINO's own FakeQuantize operator.

    Args:
        model: Float model whose nodes are named after the layers.
        precision: Layer -> ``int8``, or one float format for all others.
        ranges: Of the tensors named by `observed_tensors`.
        levels: Largest stored weight: 127, or 64 on chips that sum products in 16 bits.

    Raises:
        EvaluationError: an unknown precision, two float formats at once, a layer or range that is missing, or a range
            that is not finite.
    """
    check_precisions(precision, PRECISIONS, "openvino")
    floats = sorted(set(precision.values()) - {"int8"})
    if len(floats) > 1:
        raise invalid(f"openvino has one float format per model, found {' and '.join(floats)}")
    graph = Graph(model)
    layers = int8_layers(precision)
    tensors = quantized_tensors(read_flow(graph), layers)
    for node in graph.nodes:
        if node.op_type == "Conv" and len(node.input) > 2:
            _split_bias(graph, node)
    for node in graph.layers(layers):
        _quantize_weight(graph, node, levels)
    for name, owner in tensors.items():
        _quantize_activation(graph, name, symmetric(range_of(ranges, owner)))
    return graph.finish()


def _quantize_activation(graph: Graph, name: str, quantizer: Quantizer) -> None:
    limits = np.iinfo(quantizer.dtype)
    low = graph.store(f"{name}_low", np.array(limits.min * quantizer.scale, np.float32))
    high = graph.store(f"{name}_high", np.array(limits.max * quantizer.scale, np.float32))

    def fake_quantize(source: str, target: str) -> list[onnx.NodeProto]:
        inputs = [source, low, high, low, high]
        node = helper.make_node("FakeQuantize", inputs, [target], name=f"{name}_quantize", domain=_DOMAIN)
        node.attribute.append(helper.make_attribute("levels", _FAKE_QUANTIZE_LEVELS))
        return [node]

    graph.use_domain(_DOMAIN, 1)
    graph.insert_for_readers(name, fake_quantize)


def _quantize_weight(graph: Graph, node: onnx.NodeProto, levels: int) -> None:
    axis = output_axis(node)
    weight = graph.constant(node.input[1], node.name)
    stored, scale = quantize_weight(weight, axis, levels)
    name = f"{node.name}.weight"
    integers = graph.store(f"{name}_quantized", stored)
    scales = graph.store(f"{name}_scale", scale.reshape(along(axis, weight.ndim)))
    cast = helper.make_node("Cast", [integers], [f"{name}_cast"], name=f"{name}_cast", to=TensorProto.FLOAT)
    multiply = helper.make_node("Mul", [f"{name}_cast", scales], [f"{name}_scaled"], name=f"{name}_multiply")
    graph.feed(node, 1, [cast, multiply])


def _split_bias(graph: Graph, node: onnx.NodeProto) -> None:
    """Write the bias of a convolution as an addition behind it."""
    weight, bias, output = node.input[1], node.input[2], node.output[0]
    if weight not in graph.initializers or bias not in graph.initializers:
        return
    shape = along(1, len(graph.initializers[weight].dims))
    shaped = graph.store(f"{node.name}.bias_shaped", graph.constant(bias, node.name).reshape(shape))
    del node.input[2:]
    graph.insert_behind(
        node,
        output,
        f"{output}_unbiased",
        lambda source, target: [helper.make_node("Add", [source, shaped], [target], name=f"{node.name}.bias_add")],
    )
