"""What a backend is: a device's way to take a float ONNX file and a precision per layer, and give back numbers.

A backend lowers (inserts quantise/dequantise pairs the way its runtime wants them), builds (compiles or converts to
the file that ships), opens (a session that runs) and inspects (what each layer really computes in). Third parties add
one through an entry point of the group ``hwsearch.backends`` that names a class without constructor arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import BackendUnavailableError, ConfigError, did_you_mean
from hwsearch.store import atomic_write, sha256_files
from hwsearch.types import Artifact, Device, LayerTime, TensorRange

if TYPE_CHECKING:
    import onnx

    from hwsearch.backends.energy import Meter

ENTRY_POINT_GROUP = "hwsearch.backends"

BUILT_IN = {
    "onnxruntime": "hwsearch.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "hwsearch.backends.openvino:OpenVinoBackend",
    "tensorrt": "hwsearch.backends.tensorrt:TensorRtBackend",
    "trtexec": "hwsearch.backends.trtexec:TrtexecBackend",
    "table": "hwsearch.backends.simulated:SimulatedBackend",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a model is run; part of the device fingerprint.

    Attributes:
        threads: Intra-op threads.
        batch: Examples per call.
        float_precision: Format of the layers that are not quantised: ``fp32`` or ``bf16``. A backend that cannot
            honour it raises `EvaluationError` instead of running something else.
        cpus: Cores the measuring process is pinned to; empty for no pinning.
        spinning: Whether idle threads of the runtime's pool busy-wait for work. Faster with several threads on an
            otherwise idle machine, and in the way of everything else on it.
        options: The target's own settings for its backend, e.g. ``{"cuda_graph": "off"}``.
    """

    threads: int = 1
    batch: int = 1
    float_precision: str = "fp32"
    cpus: tuple[int, ...] = ()
    spinning: bool = True
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether a backend can be used here; `problem` and `install` are set when it cannot."""

    version: str | None
    problem: str | None = None
    install: str | None = None

    @property
    def ok(self) -> bool:
        """True when there is no problem."""
        return self.problem is None


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerRequest:
    """What `Backend.lower` needs beside the float model.

    Attributes:
        precision: Layer (= node name in the model) -> requested precision.
        ranges: Activation tensor name -> range; holds every tensor that `tensors_to_observe` named.
    """

    precision: Mapping[str, str]
    ranges: Mapping[str, TensorRange] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule of a runtime that a model breaks: at which node (empty for the model as a whole), which rule, and how."""

    node: str
    rule: str
    detail: str

    def __str__(self) -> str:
        place = f"`{self.node}`" if self.node else "the model"
        return f'{place} breaks the rule "{self.rule}": {self.detail}'


@runtime_checkable
class ChecksOnnx(Protocol):
    """A backend that knows what its runtime demands of an ONNX file without having the runtime."""

    def violations(self, model: onnx.ModelProto) -> Sequence[Violation]:
        """Every rule the model breaks, in execution order."""
        ...


@runtime_checkable
class CountsEnergy(Protocol):
    """A backend whose device may have counters of the energy it takes."""

    def energy_meter(self) -> Meter | None:
        """The counters; None where there are none, or they may not be read."""
        ...


class Session(Protocol):
    """A model loaded in its runtime, with its buffers allocated."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input batch, N first; what `bind` takes."""
        ...

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [N, ...] for inputs [N, ...]; N is the batch the session was opened with."""
        ...

    def bind(self, batch: NDArray[np.float32]) -> None:
        """Fix the input of the `step` calls that follow."""
        ...

    def step(self) -> int | None:
        """One inference on the bound input; what is timed. Allocates and copies nothing it need not.

        Returns nanoseconds where the device has a clock of its own, and None where the caller's clock is to be used.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A device's runtime: see the module's docstring. `hwsearch.testing.BackendContract` checks an implementation.

    Example:
        >>> from hwsearch.backends.base import get_backend
        >>> backend = get_backend("onnxruntime")
        >>> isinstance(backend, hs.Backend), backend.availability().ok
        (True, True)
    """

    name: str

    def availability(self) -> Availability:
        """Whether runtime and device are here; never raises."""
        ...

    def device(self, options: RunOptions) -> Device:
        """Fingerprint of what runs with these options."""
        ...

    def tensors_to_observe(self, model: onnx.ModelProto, precision: Mapping[str, str]) -> Sequence[str]:
        """Activation tensors of the float model whose ranges `lower` will ask for."""
        ...

    def lower(self, model: onnx.ModelProto, request: LowerRequest) -> onnx.ModelProto:
        """A new model with quantise/dequantise pairs in this runtime's own form; the input is left alone.

        Raises:
            EvaluationError: a precision this backend cannot express.
        """
        ...

    def build(self, model: onnx.ModelProto, folder: Path, options: RunOptions) -> Artifact:
        """Write the file that ships into `folder` (which exists and is empty)."""
        ...

    def open(self, artifact: Artifact, options: RunOptions) -> Session:
        """Load an artifact; the batch axis is fixed to ``options.batch``."""
        ...

    def inspect(self, artifact: Artifact, precision: Mapping[str, str], options: RunOptions) -> Sequence[LayerTime]:
        """What the runtime executes, unit by unit, beside what was requested."""
        ...


def check_batch(batch: NDArray[np.float32], size: int) -> None:
    """Refuse inputs whose first axis is not the batch a session was opened with.

    Raises:
        ValueError: says both sizes.
    """
    if len(batch) != size:
        raise ValueError(f"the session was opened for batches of {size}, found {len(batch)} examples")


def write_onnx(model: onnx.ModelProto, folder: Path) -> Artifact:
    """``model.onnx`` in `folder` as a portable artifact, byte for byte the same for the same model."""
    path = folder / "model.onnx"
    with atomic_write(path) as stream:
        stream.write(model.SerializeToString(deterministic=True))
    return Artifact(
        path=str(path),
        files=(str(path),),
        format="onnx",
        sha256=sha256_files([path]),
        size_bytes=path.stat().st_size,
        portable=True,
    )


def energy_meter(backend: Backend) -> Meter | None:
    """What counts the energy of a backend's device; None if nothing does."""
    return backend.energy_meter() if isinstance(backend, CountsEnergy) else None


def backend_names() -> list[str]:
    """Names of the built-in and the installed plug-in backends, sorted."""
    plugins = {point.name for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(plugins | set(BUILT_IN))


def get_backend(name: str) -> Backend:
    """The backend called `name`: built in, from an entry point, or ``package.module:Class``.

    ``name@host`` is a backend that works on another machine: its class is given the host.

    Raises:
        ConfigError: no such backend, or one that works on this machine only.
        BackendUnavailableError: a plug-in cannot be imported.
    """
    plugins = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    kind, _, host = name.partition("@")
    path = plugins.get(kind) or BUILT_IN.get(kind) or (kind if ":" in kind else None)
    if path is None:
        raise ConfigError(
            f"unknown backend `{kind}`", allowed=", ".join(backend_names()), hint=did_you_mean(kind, backend_names())
        )
    module_name, _, attribute = path.partition(":")
    try:
        backend_class = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendUnavailableError(f"backend `{kind}` cannot be loaded: {error}") from error
    if host and not getattr(backend_class, "remote", False):
        raise ConfigError(f"backend `{kind}` works on this machine only", where=f"backend = {name}", allowed=kind)
    backend: Backend = backend_class(host) if host else backend_class()
    return backend
