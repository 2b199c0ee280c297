"""A backend on a made-up machine that counts its energy: a powercap folder whose counters begin again now and then.

The worker's child imports this module by name, as it would a user's plug-in; ``MADE_UP_POWERCAP`` names the folder.
"""

import functools
import os
import time
from pathlib import Path

from hwsearch.backends.energy import Powercap
from hwsearch.testing import FakeBackend

MOST = 40_000_000  # µJ, after which a counter begins again
SHARES = {"intel-rapl:0": 0.75, "intel-rapl:1": 0.25, "intel-rapl:0:0": 0.5}  # the last is a part of the first
NEARLY_FULL = 53.3313  # J of both packages, 2 mJ before the first begins again
IDLE_WATTS, EXTRA_WATTS = 0.01, 15.0  # idling is by the real clock, on a machine that may be busy


class Counters:
    """The folder as Linux shows it, with one more counter that cannot be read."""

    def __init__(self, root, joules):
        self.root, self.joules = root, joules
        for name in (*SHARES, "intel-rapl-mmio:0"):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / "max_energy_range_uj").write_text(f"{MOST}\n")
        self.count(0.0)

    def count(self, joules):
        self.joules += joules
        for name, share in SHARES.items():
            (self.root / name / "energy_uj").write_text(f"{round(share * self.joules * 1e6) % MOST}\n")


class Machine:
    """Takes `IDLE_WATTS` all the time, and `EXTRA_WATTS` more for as long as the fake device says it computes."""

    def __init__(self, root):
        self.counters, self.seen, self.computed = Counters(root, NEARLY_FULL), time.monotonic(), 0.0

    def catch_up(self):
        now = time.monotonic()
        self.counters.count(IDLE_WATTS * (now - self.seen) + EXTRA_WATTS * self.computed)
        self.seen, self.computed = now, 0.0


@functools.cache
def machine():
    """The machine of this process."""
    return Machine(Path(os.environ["MADE_UP_POWERCAP"]))


class LivePowercap(Powercap):
    """The real reader of the folder; the made-up machine is told to write its counters first."""

    def read(self):
        machine().catch_up()
        return super().read()


class CountingBackend(FakeBackend):
    """The fake device, with counters."""

    name = "counting"

    def energy_meter(self):
        return LivePowercap(Powercap.find(machine().counters.root).zones)

    def open(self, artifact, options):
        session = super().open(artifact, options)
        run = session.step

        def step():
            run()
            machine().computed += session.seconds

        session.step = step
        return session
