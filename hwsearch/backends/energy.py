"""Energy per example, net of what the device takes when idle: from counters of the hardware, or not at all.

Nothing is modelled here. Where there is no counter the answer is None, so that a computed figure can never stand beside
a measured one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hwsearch.types import Energy

POWERCAP = Path("/sys/class/powercap")

TURNS = 5
STUDENT = 2.776
"""Half of a 95 % interval in standard errors of a mean of so many readings."""

Clock = Callable[[], float]


class Meter(Protocol):
    """Counters of the energy a device has taken."""

    @property
    def source(self) -> str:
        """What they are called in results."""
        ...

    def read(self) -> tuple[int, ...]:
        """What each counter shows."""
        ...

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Energy between two readings."""
        ...


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter in microjoules, which begins again at zero after `most`."""

    path: Path
    most: int

    def read(self) -> int:
        """Microjoules counted so far."""
        return int(self.path.read_text())


@dataclass(frozen=True, slots=True)
class Powercap:
    """The processor packages' counters (RAPL) as Linux shows them."""

    zones: tuple[Zone, ...]
    source: str = "powercap"

    @classmethod
    def find(cls, root: Path = POWERCAP) -> Powercap | None:
        """The counters below `root` that may be read; None if there are none. Parts of a package do not count twice."""
        zones = []
        for folder in sorted(root.glob("intel-rapl:*")):
            try:
                zone = Zone(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
                zone.read()
            except (OSError, ValueError):
                continue
            if folder.name.count(":") == 1:
                zones.append(zone)
        return cls(tuple(zones)) if zones else None

    def read(self) -> tuple[int, ...]:
        """What each counter shows."""
        return tuple(zone.read() for zone in self.zones)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Energy between two readings, no counter having begun again more than once."""
        counted = (
            late - early if late >= early else late + zone.most - early
            for zone, early, late in zip(self.zones, before, after, strict=True)
        )
        return sum(counted) / 1e6


@dataclass(frozen=True, slots=True)
class Nvml:
    """The counter of one NVIDIA GPU (Volta and later), in millijoules since the driver was loaded."""

    handle: Any
    source: str = "nvml"

    @classmethod
    def find(cls, bus_id: str) -> Nvml | None:
        """The counter of the GPU at a PCI address; None without it, its driver or the package ``nvidia-ml-py``."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            found = cls(pynvml.nvmlDeviceGetHandleByPciBusId(bus_id))
            found.read()
        except pynvml.NVMLError:
            return None
        return found

    def read(self) -> tuple[int, ...]:
        """What the counter shows."""
        import pynvml

        return (int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)),)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Energy between two readings."""
        return (after[0] - before[0]) / 1e3


def measure_energy(
    step: Callable[[], object],
    examples: int,
    meter: Meter,
    *,
    seconds: float = 2.0,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Energy per example of a step that processes so many: idle and busy in turns, so that a drift cancels out.

    Args:
        step: One inference.
        examples: It processes.
        meter: Counters.
        seconds: Of idling, and as many of inference, over all turns.
        clock: Seconds.
        sleep: Waits so many.
    """
    net: list[float] = []
    total: list[float] = []
    idle: list[float] = []
    for _ in range(TURNS):
        idle_joules, waited, _ = _spent(meter, lambda: sleep(seconds / TURNS), 0.0, clock)
        step()  # wakes what went to sleep
        joules, elapsed, calls = _spent(meter, step, seconds / TURNS, clock)
        count = calls * examples
        idle.append(idle_joules / waited)
        total.append(1e3 * joules / count)
        net.append(1e3 * (joules - idle[-1] * elapsed) / count)
    mean, spread = statistics.fmean(net), STUDENT * statistics.stdev(net) / TURNS**0.5
    return Energy(
        net_mj=mean,
        ci95_mj=(mean - spread, mean + spread),
        source=meter.source,
        total_mj=statistics.fmean(total),
        idle_watts=statistics.fmean(idle),
    )


def _spent(meter: Meter, work: Callable[[], object], seconds: float, clock: Clock) -> tuple[float, float, int]:
    """Joules and seconds that calls of `work` take, at least one and as many as fit into `seconds`; how many."""
    started, before, calls = clock(), meter.read(), 0
    while not calls or clock() - started < seconds:
        work()
        calls += 1
    return meter.joules(before, meter.read()), clock() - started, calls
