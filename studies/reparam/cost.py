"""What a training costs the process it runs in."""

from __future__ import annotations

import re
import time
from pathlib import Path

MIB = 2**20


class Cost:
    """Peak memory beyond what the process holds when this is made, and processor time of an epoch.

    Its method `epoch` is what `hwsearch.reparam.recipe.retrained` calls after each epoch.
    """

    def __init__(self):
        self.marks = []
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: it is that of loading images
        self.before = resident("VmRSS")

    def epoch(self, _number, _loss):
        """An epoch has ended."""
        self.marks.append((time.process_time(), resident("VmHWM")))

    def numbers(self):
        """Both, or None where nothing was trained.

        The first epoch, in which memory is claimed and kernels are made, is left out of the time.
        """
        if len(self.marks) < 2:
            return None
        seconds = (self.marks[-1][0] - self.marks[0][0]) / (len(self.marks) - 1)
        return {"cpu_seconds_an_epoch": seconds, "peak_mib": (self.marks[-1][1] - self.before) / MIB}


def resident(key):
    """Bytes of main memory, ``VmRSS`` now or ``VmHWM`` at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", status)[1])
