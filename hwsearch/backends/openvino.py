"""OpenVINO on the CPU: int8 per layer, and one float format for the rest.

The artifact is OpenVINO's own format, an ``.xml`` and a ``.bin`` file, with weights in the precision they are used in.
bf16 is offered where the processor has it. Nothing here starts a conversion tool, telemetry or a download.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from hwsearch.backends import openvino_quantize
from hwsearch.backends.base import Availability, LowerRequest, RunOptions
from hwsearch.backends.device import cpu_device, saturates_int8
from hwsearch.backends.energy import Powercap
from hwsearch.backends.flow import Flow, read_flow
from hwsearch.backends.openvino_inspect import inspect
from hwsearch.backends.openvino_session import OpenVinoSession, check_float, core, settings
from hwsearch.backends.rewrite import Graph
from hwsearch.store import sha256_files
from hwsearch.types import Artifact, Device, LayerTime

_FULL_LEVELS, _REDUCED_LEVELS = 127, 64
_AUTOMATIC_NAME = re.compile(r"\w+_\d+")


class OpenVinoBackend:
    """See the module's docstring and `hwsearch.backends.base.Backend`."""

    name = "openvino"

    def availability(self) -> Availability:
        """Whether the ``openvino`` package can be imported and has a CPU plugin; never raises."""
        install = "pip install 'hwsearch[openvino]'"
        try:
            import openvino

            devices = core().available_devices
        except (ImportError, OSError, RuntimeError) as error:
            return Availability(version=None, problem=str(error), install=install)
        if "CPU" not in devices:
            return Availability(version=openvino.__version__, problem="no CPU plugin was found", install=install)
        return Availability(version=openvino.__version__.split("-")[0])

    def device(self, options: RunOptions) -> Device:
        """Fingerprint of the processor and of every plugin property that matters."""
        facts = {name.lower(): str(value) for name, value in settings(options).items()}
        del facts["inference_num_threads"]
        return cpu_device(self.name, self.availability().version or "absent", options.threads, facts)

    def tensors_to_observe(self, model: onnx.ModelProto, precision: Mapping[str, str]) -> Sequence[str]:
        """Activation tensors whose ranges `lower` needs."""
        return sorted(self.observed_tensors(read_flow(Graph(model)), precision))

    def observed_tensors(self, flow: Flow, precision: Mapping[str, str]) -> Collection[str]:
        """The same of a graph that was read before."""
        return openvino_quantize.observed_tensors(flow, precision)

    def lower(self, model: onnx.ModelProto, request: LowerRequest) -> onnx.ModelProto:
        """A copy with quantisers; weights lose one bit on chips whose int8 products saturate."""
        levels = _REDUCED_LEVELS if "int8" in request.precision.values() and saturates_int8() else _FULL_LEVELS
        return openvino_quantize.lower(model, request.precision, request.ranges, levels=levels)

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """``model.xml`` and ``model.bin`` in `folder`, byte for byte the same for the same model."""
        import openvino

        check_float(options)
        converted = core().read_model(model.SerializeToString())
        _name_operations(converted, model)
        for entry in model.metadata_props:
            converted.set_rt_info(entry.value, entry.key.split("."))
        path = folder / "model.xml"
        openvino.save_model(converted, path, compress_to_fp16=False)
        files = [path, path.with_suffix(".bin")]
        return Artifact(
            path=str(path),
            files=tuple(str(file) for file in files),
            format="openvino-ir",
            sha256=sha256_files(files),
            size_bytes=sum(file.stat().st_size for file in files),
            portable=True,
        )

    def open(self, artifact: Artifact, options: RunOptions) -> OpenVinoSession:
        """A compiled model for batches of ``options.batch``."""
        return OpenVinoSession(artifact.path, options)

    def energy_meter(self) -> Powercap | None:
        """The counters of the processor."""
        return Powercap.find()

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:
        """Nodes of the executed graph with their profiled times."""
        return inspect(artifact.path, precision, options)


def _name_operations(converted: Any, model: onnx.ModelProto) -> None:
    """Give operations names that are the same every time, and layers their own.

    The converter numbers the operations it adds, counting on from model to model, and names what computes an output
    of the model after that output.
    """
    layers = {name: node.name for node in model.graph.node for name in node.output}
    for number, operation in enumerate(converted.get_ordered_ops()):
        kind = operation.get_type_name()
        name = operation.get_friendly_name()
        if kind not in ("Parameter", "Result") and layers.get(name):
            operation.set_friendly_name(layers[name])
        elif _AUTOMATIC_NAME.fullmatch(name) and name.startswith(f"{kind}_"):
            operation.set_friendly_name(f"{kind}_{number}")
