"""TensorRT through its command-line tool, here or over ssh: for a Jetson, a container, any machine without Python.

Models are lowered as for the backend ``tensorrt``. Every build, measurement and inference is one run of ``trtexec``,
which is slow to start: latencies come in batches of some hundred runs, and examples go through an engine built for as
many at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import onnx

from hwsearch.backends import cuda
from hwsearch.backends.base import Availability, RunOptions
from hwsearch.backends.tensorrt import CACHE, ENGINE, TensorRtBackend, engine_artifact, typed_model, write_typed
from hwsearch.backends.tensorrt_build import cache_file
from hwsearch.backends.tensorrt_options import read_options
from hwsearch.backends.trtexec_command import PROGRAM, Tool, read_help
from hwsearch.backends.trtexec_host import Host
from hwsearch.backends.trtexec_session import TrtexecSession, build_there, inspect
from hwsearch.errors import BackendUnavailableError, EvaluationError
from hwsearch.store import atomic_write
from hwsearch.types import Artifact, Device, LayerTime

_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
_BOARD = "/proc/device-tree/model"
_ORIN = (8, 7)  # the compute capability of Jetson Orin, the boards that TensorRT 10 runs on without nvidia-smi
_HELP_TIMEOUT_S = 30.0
_INSTALL = (
    "install TensorRT from https://developer.nvidia.com/tensorrt (JetPack has it), and put trtexec on the PATH of "
    "shells that are not interactive, e.g. by a link in /usr/local/bin to /usr/src/tensorrt/bin/trtexec"
)


class TrtexecBackend(TensorRtBackend):
    """See the module's docstring and `hwsearch.backends.base.Backend`.

    Args:
        host: What ``ssh`` takes; None for this machine. A target names it in ``backend: trtexec@host``.
    """

    name = "trtexec"
    remote = True

    def __init__(self, host: str | None = None) -> None:
        self._host = Host(host)

    @cached_property
    def tool(self) -> Tool:
        """The tool on the host.

        Raises:
            BackendUnavailableError: the host cannot be reached, or its trtexec is not there or too old.
        """
        try:
            return read_help(self._host.run([PROGRAM, "--help"], stage="worker", timeout_s=_HELP_TIMEOUT_S))
        except BackendUnavailableError as error:
            raise BackendUnavailableError(error.message, hint=error.hint or _INSTALL) from error
        except (EvaluationError, ValueError) as error:
            raise BackendUnavailableError(f"no usable trtexec on {self._host}: {error}", hint=_INSTALL) from error

    def availability(self) -> Availability:
        """Whether the host can be reached and has trtexec; never raises."""
        try:
            return Availability(version=self.tool.version)
        except BackendUnavailableError as error:
            return Availability(version=None, problem=error.message, install=error.hint)

    def device(self, options: RunOptions) -> Device:
        """Fingerprint of the host's GPU, its driver, and how latency is taken."""
        chip, driver, isa = self._gpu
        return Device(
            backend=self.name,
            backend_version=self.tool.version,
            chip=chip,
            isa=isa,
            threads=options.threads,
            driver=driver,
            options={
                "float_precision": options.float_precision,
                "clock": "trtexec",
                "host": self._host.name or "local",
                **read_options(options.options).facts(),
            },
        )

    @property
    def _gpu(self) -> tuple[str, str, tuple[str, ...]]:
        """Name, driver and features of the host's GPU; of a board without nvidia-smi, its own name alone."""
        try:
            line = self._host.run(_GPU_QUERY, stage="worker").strip().splitlines()[0]
            chip, driver, capability = (part.strip() for part in line.split(","))
            major, minor = capability.split(".")
            return chip, driver, cuda.gpu_features((int(major), int(minor)))
        except (BackendUnavailableError, EvaluationError, ValueError, IndexError):
            board = self._host.run(["cat", _BOARD], stage="worker").strip("\0\n ")
            return board, "unknown", tuple(name for name, first in cuda.FEATURES if first <= _ORIN)

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """Engine, ONNX file and timing cache in `folder`, made on the host."""
        typed = typed_model(model, options)
        device = self.device(options)
        cache = cache_file(device.chip, device.driver or "", f"{self.name}-{device.backend_version}")
        engine, timings = build_there(
            self._host, self.tool, typed, options, cache.read_bytes() if cache.is_file() else b""
        )
        for path, data in ((folder / ENGINE, engine), (folder / CACHE, timings), (cache, timings)):
            with atomic_write(path) as stream:
                stream.write(data)
        write_typed(typed, folder)
        return engine_artifact(folder)

    def open(self, artifact: Artifact, options: RunOptions) -> TrtexecSession:  # type: ignore[override]
        """The engine on the host; another one is built there for batches it was not built for."""
        return TrtexecSession(self._host, self.tool, artifact, options)

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:  # noqa: ARG002
        """Layers of the engine with their profiled times."""
        return inspect(self._host, self.tool, artifact, precision)
