"""OpenVINO's own ways to run one model on several devices: AUTO shares out requests, HETERO splits the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsearch.backends.openvino_session import core
from hwsearch.backends.pair import rate
from hwsearch.errors import BackendUnavailableError

PROPERTIES = {
    "auto": {"PERFORMANCE_HINT": "CUMULATIVE_THROUGHPUT"},
    "hetero": {"PERFORMANCE_HINT": "THROUGHPUT"},
}
"""Way of sharing -> what it is compiled with; the rest is left to each device."""

REQUESTS = 16
"""Parts of a batch that are handed out: enough for a fast device to take more of them than a slow one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What several devices do together.

    Attributes:
        alone: Device -> examples per second on its own.
        together: Examples per second of all at once.
    """

    alone: dict[str, float]
    together: float

    @property
    def efficiency(self) -> float:
        """Share of the sum of all throughputs that is reached."""
        return self.together / sum(self.alone.values())


def several_devices(way: str) -> tuple[str, ...]:
    """The devices OpenVINO sees here, in its own order.

    Raises:
        BackendUnavailableError: it sees but one.
    """
    found = tuple(core().available_devices)
    if len(found) < 2:
        raise BackendUnavailableError(
            f"OpenVINO's {way.upper()} shares work among devices, and sees one here: {', '.join(found) or 'none'}",
            hint="`--pair openvino-cpu` shares a batch between two sessions, each on a core of its own",
        )
    return found


def measure_shared(path: Path, way: str, devices: Sequence[str], batch: int, *, seconds: float = 2.0) -> Shared:
    """Throughput of each device on its own, and of all of them shared by OpenVINO.

    Args:
        path: An ``.onnx`` or ``.xml`` file.
        way: ``auto`` or ``hetero``.
        devices: As OpenVINO names them, e.g. ``GPU`` and ``CPU``.
        batch: Examples, handed out in `REQUESTS` parts.
        seconds: Of each measurement, about.
    """
    throughput = {"PERFORMANCE_HINT": "THROUGHPUT"}
    alone = {name: _rate(path, name, throughput, batch, seconds) for name in devices}
    together = _rate(path, f"{way.upper()}:{','.join(devices)}", PROPERTIES[way], batch, seconds)
    return Shared(alone=alone, together=together)


def _rate(path: Path, device: str, properties: dict[str, str], batch: int, seconds: float) -> float:
    part = max(1, batch // REQUESTS)
    parts = -(-batch // part)
    return rate(_runner(path, device, properties, part, parts), part * parts, seconds)


def _runner(path: Path, device: str, properties: dict[str, str], part: int, parts: int) -> Callable[[], None]:
    """Runs so many requests of `part` examples, as many at once as the device likes."""
    import openvino

    model = core().read_model(path)
    shape = model.inputs[0].partial_shape
    shape[0] = part
    model.reshape(shape)
    compiled = core().compile_model(model, device, properties)
    queue = openvino.AsyncInferQueue(compiled)
    inputs = np.random.default_rng(0).standard_normal(tuple(compiled.inputs[0].shape), dtype=np.float32)

    def run() -> None:
        for _ in range(parts):
            queue.start_async([inputs], share_inputs=True)
        queue.wait_all()

    return run
