"""TensorRT 10 and 11 on an NVIDIA GPU: strongly typed networks in fp32, tf32, fp16, bf16, int8, fp8 and int4 weights.

The artifact is an engine, which runs on this GPU, driver and version only, with the typed ONNX file and the timing
cache it was built from. Engines are built for one batch size, and two builds of one model may differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from hwsearch.backends import cuda, tensorrt_qdq
from hwsearch.backends.base import Availability, LowerRequest, RunOptions, Violation
from hwsearch.backends.energy import Nvml
from hwsearch.backends.flow import Flow
from hwsearch.backends.tensorrt_build import build_engine, cache_file, check_float, fix_batch
from hwsearch.backends.tensorrt_inspect import inspect
from hwsearch.backends.tensorrt_options import read_options
from hwsearch.backends.tensorrt_rules import violations
from hwsearch.backends.tensorrt_runtime import availability, load
from hwsearch.backends.tensorrt_session import TensorRtSession
from hwsearch.errors import EvaluationError
from hwsearch.store import atomic_write, sha256_files
from hwsearch.types import Artifact, Device, LayerTime

ENGINE, ONNX, CACHE = "model.engine", "model.onnx", "timing.cache"
FORMAT = "tensorrt-engine"


class TensorRtBackend:
    """See the module's docstring and `hwsearch.backends.base.Backend`."""

    name = "tensorrt"

    def availability(self) -> Availability:
        """Whether TensorRT, its libraries and a GPU are here; never raises."""
        return availability()

    def device(self, options: RunOptions) -> Device:
        """Fingerprint of the GPU, its driver, and how latency is taken."""
        return Device(
            backend=self.name,
            backend_version=str(load().__version__),
            chip=cuda.gpu_name(),
            isa=cuda.gpu_features(cuda.compute_capability()),
            threads=options.threads,
            driver=cuda.driver_version(),
            options={
                "float_precision": options.float_precision,
                "clock": "cuda events",
                **read_options(options.options).facts(),
            },
        )

    def violations(self, model: onnx.ModelProto) -> Sequence[Violation]:
        """What TensorRT would refuse about a model; needs neither TensorRT nor a GPU."""
        return violations(model)

    def tensors_to_observe(self, model: onnx.ModelProto, precision: Mapping[str, str]) -> Sequence[str]:
        """Activation tensors whose ranges `lower` needs."""
        return tensorrt_qdq.tensors_to_observe(model, precision)

    def observed_tensors(self, flow: Flow, precision: Mapping[str, str]) -> Collection[str]:
        """The same of a graph that was read before."""
        return tensorrt_qdq.quantized_tensors(flow, precision)

    def lower(self, model: onnx.ModelProto, request: LowerRequest) -> onnx.ModelProto:
        """A copy in which every tensor has the type it is to be computed in."""
        return tensorrt_qdq.lower(model, request.precision, request.ranges)

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """Engine, ONNX file and timing cache in `folder`; the last also serves later builds on this GPU."""
        typed = typed_model(model, options)
        device = self.device(options)
        cache = cache_file(device.chip, device.driver or "", device.backend_version)
        engine = build_engine(typed, options, cache)
        with atomic_write(folder / ENGINE) as stream:
            stream.write(engine)
        write_typed(typed, folder)
        shutil.copyfile(cache, folder / CACHE)
        return engine_artifact(folder)

    def open(self, artifact: Artifact, options: RunOptions) -> TensorRtSession:
        """The engine with its buffers on the GPU."""
        return TensorRtSession(artifact.path, options)

    def energy_meter(self) -> Nvml | None:
        """The counter of the GPU."""
        return Nvml.find(cuda.gpu_bus_id())

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:  # noqa: ARG002
        """Layers of the engine with their profiled times."""
        return inspect(artifact.path, precision)


def typed_model(model: onnx.ModelProto, options: RunOptions) -> onnx.ModelProto:
    """The model as TensorRT gets it: one batch size, all rules kept.

    Raises:
        EvaluationError: names the node and the rule it breaks, or the float format that cannot be had.
    """
    check_float(model, options.float_precision)
    typed = fix_batch(model, options.batch)
    if broken := violations(typed):
        raise EvaluationError(f"TensorRT would refuse the model: {broken[0]}", stage="build", kind="invalid")
    return typed


def write_typed(model: onnx.ModelProto, folder: Path) -> Path:
    """``model.onnx`` in `folder`, from which the engine can be built again elsewhere."""
    with atomic_write(folder / ONNX) as stream:
        stream.write(model.SerializeToString(deterministic=True))
    return folder / ONNX


def engine_artifact(folder: Path) -> Artifact:
    """The engine in `folder` with its companions."""
    files = [folder / name for name in (ENGINE, ONNX, CACHE)]
    return Artifact(
        path=str(files[0]),
        files=tuple(str(file) for file in files),
        format=FORMAT,
        sha256=sha256_files(files),
        size_bytes=sum(file.stat().st_size for file in files),
        portable=False,
    )
