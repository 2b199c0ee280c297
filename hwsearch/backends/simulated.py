"""Accuracy on a device that is not here, from n-bit values in int8 containers; its latency is known by a table alone.

Weights are rounded to n-bit levels per output channel, activations to n-bit levels over their observed range, and the
network is then run by ONNX Runtime. That is what the numbers on the device will be; it says nothing of its speed, and
whatever computed here is reported as simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from hwsearch.backends.base import Availability, LowerRequest, RunOptions, Session
from hwsearch.backends.onnxruntime import OnnxRuntimeBackend
from hwsearch.backends.onnxruntime_qdq import keep_float
from hwsearch.backends.qdq import Quantizer, check_precisions, quantize_activation, quantize_layer, range_of
from hwsearch.backends.rewrite import Graph
from hwsearch.types import PRECISIONS, Artifact, Device, LayerTime, TensorRange

OFFERED = ("fp32", "int8", "int4", "int2")


class SimulatedBackend:
    """See the module's docstring and `hwsearch.backends.base.Backend`."""

    name = "table"

    def __init__(self) -> None:
        self._runtime = OnnxRuntimeBackend()

    def availability(self) -> Availability:
        """Whether ONNX Runtime, which runs the simulation, is here."""
        return self._runtime.availability()

    def device(self, options: RunOptions) -> Device:
        """What computes the outputs; the device the table is of is the target's business."""
        return dataclasses.replace(self._runtime.device(options), backend=self.name)

    def tensors_to_observe(self, model: onnx.ModelProto, precision: Mapping[str, str]) -> Sequence[str]:
        """What integer layers read."""
        return sorted(_bits_read(Graph(model), precision))

    def lower(self, model: onnx.ModelProto, request: LowerRequest) -> onnx.ModelProto:
        """A copy whose integer layers compute with n-bit values; a tensor read in several widths takes the widest."""
        check_precisions(request.precision, OFFERED, self.name)
        graph = Graph(model)
        bits = _bits_read(graph, request.precision)
        quantizers = {name: _quantizer(range_of(request.ranges, name), width) for name, width in bits.items()}
        integer = _integer_layers(request.precision)
        keep_float(graph, quantizers, integer)
        for node in graph.layers(integer):
            levels = 2 ** (PRECISIONS[request.precision[node.name]].weight_bits - 1) - 1
            quantize_layer(graph, node, levels, quantizers[node.input[0]].scale)
        for name, quantizer in quantizers.items():
            quantize_activation(graph, name, quantizer)
        return graph.finish()

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """``model.onnx`` in `folder`; its size is that of the containers."""
        return self._runtime.build(model, folder, options)

    def open(self, artifact: Artifact, options: RunOptions) -> Session:
        """A session that computes what the device would."""
        return self._runtime.open(artifact, options)

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:  # noqa: ARG002
        """One unit per layer, marked as simulated, without times."""
        return [
            LayerTime(
                runtime_layer=layer,
                kind="simulated",
                source_layers=(layer,),
                requested=name,
                executed=f"simulated {name}",
                ms=None,
            )
            for layer, name in precision.items()
        ]


def _integer_layers(precision: Mapping[str, str]) -> list[str]:
    return [layer for layer, name in precision.items() if PRECISIONS[name].integer]


def _bits_read(graph: Graph, precision: Mapping[str, str]) -> dict[str, int]:
    """Tensor -> widest activation of the integer layers that read it."""
    bits: dict[str, int] = {}
    for node in graph.layers(_integer_layers(precision)):
        bits[node.input[0]] = max(bits.get(node.input[0], 0), PRECISIONS[precision[node.name]].act_bits)
    return bits


def _quantizer(interval: TensorRange, bits: int) -> Quantizer:
    """The quantiser with ``2 ** bits`` levels that covers `interval` and represents 0 exactly."""
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    steps = 2**bits - 1
    scale = float(np.float32((high - low) / steps)) or 1.0
    return Quantizer(scale=scale, zero_point=int(np.clip(round(-low / scale), 0, steps)), dtype=np.uint8, steps=steps)
