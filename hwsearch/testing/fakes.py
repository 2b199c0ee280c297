"""Backends that need no runtime: real graphs and files, outputs from the ONNX reference, time that is spun away."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import shape_inference

from hwsearch.backends.base import Availability, LowerRequest, RunOptions, check_batch, write_onnx
from hwsearch.backends.qdq import (
    asymmetric,
    check_precisions,
    int8_layers,
    output_axis,
    quantize_activation,
    quantize_layer,
    range_of,
)
from hwsearch.backends.readback import complete, layer_time
from hwsearch.backends.rewrite import Graph
from hwsearch.errors import EvaluationError
from hwsearch.types import Artifact, Device, LayerTime

SECONDS_PER_MAC = {"fp32": 1e-9, "bf16": 0.6e-9, "int8": 0.4e-9}
SECONDS_PER_CALL = 20e-6

_PRECISION_KEY = "hwsearch.testing.precision"


class FakeBackend:
    """A device that does not exist: one multiply-accumulate a nanosecond in fp32, faster in bf16 and int8.

    It quantises for real (uint8 inputs, int8 weights per channel), so accuracy behaves as on a device; bf16 is computed
    as fp32. Meant for small networks: the ONNX reference implementation takes milliseconds for what runtimes do in
    microseconds, though not inside `FakeSession.step`.
    """

    name = "fake"

    def availability(self) -> Availability:
        """Always here."""
        return Availability(version="1")

    def device(self, options: RunOptions) -> Device:
        """A chip called ``fake``."""
        return Device(
            backend=self.name,
            backend_version="1",
            chip="fake",
            isa=(),
            threads=options.threads,
            options={"float_precision": options.float_precision},
        )

    def tensors_to_observe(self, model: onnx.ModelProto, precision: Mapping[str, str]) -> Sequence[str]:
        """What int8 layers read."""
        return sorted({node.input[0] for node in Graph(model).layers(int8_layers(precision))})

    def lower(self, model: onnx.ModelProto, request: LowerRequest) -> onnx.ModelProto:
        """A copy with a quantise/dequantise pair on what int8 layers read, and the request in its metadata."""
        check_precisions(request.precision, SECONDS_PER_MAC, self.name)
        graph = Graph(model)
        nodes = graph.layers(int8_layers(request.precision))
        quantizers = {node.input[0]: asymmetric(range_of(request.ranges, node.input[0])) for node in nodes}
        for node in nodes:
            quantize_layer(graph, node, 127, quantizers[node.input[0]].scale)
        for name, quantizer in quantizers.items():
            quantize_activation(graph, name, quantizer)
        lowered = graph.finish()
        lowered.metadata_props.add(key=_PRECISION_KEY, value=json.dumps(dict(request.precision)))
        return lowered

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """``model.onnx`` in `folder`."""
        if options.float_precision not in ("fp32", "bf16"):
            raise EvaluationError(f"fake cannot run {options.float_precision}", stage="build", kind="invalid")
        return write_onnx(model, folder)

    def open(self, artifact: Artifact, options: RunOptions) -> FakeSession:
        """A session whose `step` takes as long as the device would."""
        return FakeSession(onnx.load(artifact.path), options)

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:
        """One unit per layer, computing what was requested."""
        model = onnx.load(artifact.path)
        macs = layer_macs(model, options.batch)
        requested = requested_precision(model)
        times = [
            layer_time(
                runtime_layer=name,
                kind="Fake",
                source_layers=[name] if name in precision else [],
                precision=precision,
                executed=requested[name],
                ms=macs[name] * SECONDS_PER_MAC[requested[name]] * 1e3,
            )
            for name in requested
        ]
        return complete(times, precision)


class FakeSession:
    """Outputs by the ONNX reference implementation; `step` only spends time, `seconds` of it."""

    def __init__(self, model: onnx.ModelProto, options: RunOptions) -> None:
        from onnx.reference import ReferenceEvaluator

        requested = requested_precision(model)
        macs = layer_macs(model, options.batch)
        value = model.graph.input[0]
        self._name = value.name
        self._evaluator: Any = ReferenceEvaluator(model)
        self.seconds = SECONDS_PER_CALL + sum(macs[name] * SECONDS_PER_MAC[requested[name]] for name in requested)
        self.input_shape: tuple[int, ...] = (
            options.batch,
            *(size.dim_value for size in value.type.tensor_type.shape.dim[1:]),
        )

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [N, ...] for inputs [N, ...]; N is the batch the session was opened with."""
        check_batch(batch, self.input_shape[0])
        outputs: list[NDArray[np.float32]] = self._evaluator.run(None, {self._name: batch})
        return outputs[0]

    def bind(self, batch: NDArray[np.float32]) -> None:
        """Check the batch; nothing is kept."""
        check_batch(batch, self.input_shape[0])

    def step(self) -> None:
        """Keep the processor busy for as long as the device would take."""
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass


def requested_precision(model: onnx.ModelProto) -> dict[str, str]:
    """Layer -> precision a model was lowered for by `FakeBackend`."""
    found: dict[str, str] = json.loads({entry.key: entry.value for entry in model.metadata_props}[_PRECISION_KEY])
    return found


def layer_macs(model: onnx.ModelProto, batch: int) -> dict[str, int]:
    """Name of each node with a weight -> multiply-accumulates for `batch` examples."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    graph = shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return {
        node.name: math.prod(shapes[node.output[0]]) * math.prod(weight) // weight[output_axis(node)]
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and (weight := shapes.get(node.input[1]))
    }


class FailingBackend(FakeBackend):
    """Refuses every model in `build`, with a message."""

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:  # noqa: ARG002
        """Never returns."""
        raise EvaluationError("this backend refuses every model", stage="build", kind="invalid", hint="use another")


class _MoodyBackend(FakeBackend):
    """Misbehaves on models that mix precisions, so that baselines succeed and a search meets both."""

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """Like `FakeBackend.build`, for models whose layers all have one precision."""
        if len(set(requested_precision(model).values())) > 1:
            self._misbehave()
        return super().build(model, folder, options)

    def _misbehave(self) -> None:
        raise NotImplementedError


class CrashingBackend(_MoodyBackend):
    """Takes its process down, as a broken runtime does, in `build` of a model that mixes precisions."""

    def _misbehave(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class SlowBackend(_MoodyBackend):
    """Takes an hour for `build` of a model that mixes precisions."""

    def _misbehave(self) -> None:
        time.sleep(3600)


class MemoryHogBackend(_MoodyBackend):
    """Asks for 64 GiB in `build` of a model that mixes precisions; touches none of it, so that no machine suffers."""

    def _misbehave(self) -> None:
        hoard = [np.empty(2**30, np.uint8) for _ in range(64)]
        hoard.clear()
