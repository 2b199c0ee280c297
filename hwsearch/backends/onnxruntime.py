"""ONNX Runtime on the CPU: fp32 and int8 per layer.

The artifact is the plain ONNX file with quantise/dequantise pairs: portable, and optimised for the processor when it is
opened. bf16 and fp16 would run widened to fp32, hence they are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from hwsearch.backends import onnxruntime_qdq
from hwsearch.backends.base import Availability, LowerRequest, RunOptions, write_onnx
from hwsearch.backends.device import cpu_device, saturates_int8
from hwsearch.backends.energy import Powercap
from hwsearch.backends.flow import Flow, read_flow
from hwsearch.backends.onnxruntime_inspect import inspect
from hwsearch.backends.onnxruntime_observe import observe
from hwsearch.backends.onnxruntime_session import OnnxRuntimeSession
from hwsearch.backends.rewrite import Graph
from hwsearch.errors import EvaluationError
from hwsearch.types import Artifact, Device, LayerTime

__all__ = ["OnnxRuntimeBackend", "observe"]

_FULL_LEVELS, _REDUCED_LEVELS = 127, 64


class OnnxRuntimeBackend:
    """See the module's docstring and `hwsearch.backends.base.Backend`."""

    name = "onnxruntime"

    def availability(self) -> Availability:
        """Whether the ``onnxruntime`` package can be imported; never raises."""
        try:
            import onnxruntime
        except (ImportError, OSError) as error:
            return Availability(version=None, problem=str(error), install="pip install onnxruntime")
        return Availability(version=onnxruntime.__version__)

    def device(self, options: RunOptions) -> Device:
        """Fingerprint of the processor and of every session option that matters."""
        settings = {
            "execution": "sequential",
            "float_precision": options.float_precision,
            "graph_optimization": "all",
            "spinning": "on" if options.spinning else "off",
        }
        return cpu_device(self.name, self.availability().version or "absent", options.threads, settings)

    def tensors_to_observe(self, model: onnx.ModelProto, precision: Mapping[str, str]) -> Sequence[str]:
        """Activation tensors whose ranges `lower` needs."""
        return sorted(self.observed_tensors(read_flow(Graph(model)), precision))

    def observed_tensors(self, flow: Flow, precision: Mapping[str, str]) -> Collection[str]:
        """The same of a graph that was read before."""
        return onnxruntime_qdq.observed_tensors(flow, precision)

    def lower(self, model: onnx.ModelProto, request: LowerRequest) -> onnx.ModelProto:
        """A copy with quantise/dequantise pairs; weights lose one bit on chips whose int8 products saturate."""
        levels = _REDUCED_LEVELS if "int8" in request.precision.values() and saturates_int8() else _FULL_LEVELS
        return onnxruntime_qdq.lower(model, request.precision, request.ranges, levels=levels)

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """``model.onnx`` in `folder`, byte for byte the same for the same model."""
        _check_float(options)
        return write_onnx(model, folder)

    def open(self, artifact: Artifact, options: RunOptions) -> OnnxRuntimeSession:
        """A session with all optimisations, for batches of ``options.batch``."""
        _check_float(options)
        return OnnxRuntimeSession(artifact.path, options)

    def energy_meter(self) -> Powercap | None:
        """The counters of the processor."""
        return Powercap.find()

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:
        """Kernels of the optimised graph with their profiled times."""
        _check_float(options)
        return inspect(artifact.path, precision, options)


def _check_float(options: RunOptions) -> None:
    if options.float_precision != "fp32":
        raise EvaluationError(
            f"onnxruntime has no {options.float_precision} kernels on this device: it would run fp32 and convert",
            stage="build",
            kind="invalid",
            hint="use fp32, or the target openvino-cpu",
        )
