"""Where the time of an evaluation goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stopwatch:
    """Wall seconds per stage of one evaluation."""

    seconds: dict[str, float] = field(default_factory=dict)
    stage: str = "compress"

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        self.stage = stage
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
