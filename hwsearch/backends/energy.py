"""Energy per example, net of what the machine takes when idle: from counters of the hardware, or not at all.

Nothing is modelled here. Where there is no counter the answer is None, so that a computed figure can never stand beside
a measured one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

Clock = Callable[[], float]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What one example costs.

    Attributes:
        joules: Net of `idle_watts`; of the whole package, whoever else uses it.
        total_joules: Idle included.
        idle_watts: What the machine took while nothing ran.
        source: The counters.
    """

    joules: float
    total_joules: float
    idle_watts: float
    source: str = "powercap"


def measure_energy(
    step: Callable[[], object],
    examples: int,
    meter: Powercap | None,
    *,
    seconds: float = 2.0,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy | None:
    """Energy per example of a step that processes so many; None without a meter.

    Args:
        step: One inference.
        examples: It processes.
        meter: Counters, or None.
        seconds: Of idling, and of inference; 2 are many updates of a counter.
        clock: Seconds.
        sleep: Waits so many.
    """
    if meter is None:
        return None
    started, before = clock(), meter.read()
    sleep(seconds)
    idle_watts = meter.joules(before, meter.read()) / (clock() - started)
    step()
    started, before, calls = clock(), meter.read(), 0
    while not calls or clock() - started < seconds:
        step()
        calls += 1
    spent, elapsed = meter.joules(before, meter.read()), clock() - started
    count = calls * examples
    return Energy(joules=(spent - idle_watts * elapsed) / count, total_joules=spent / count, idle_watts=idle_watts)
