"""When has the scene changed? Detectors over the scores of windows, from the package ``river``, or a fixed period."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hwsearch.errors import ConfigError

Trigger = Literal["page_hinkley", "adwin", "fixed"]
TRIGGERS: tuple[Trigger, ...] = ("page_hinkley", "adwin", "fixed")

ALLOWANCE, THRESHOLD = 0.5, 10.0
"""Of the Page-Hinkley test, in standard deviations of the usual scores."""


class DriftDetector:
    """Says when scores have risen above what is usual.

    Scores are counted in standard deviations of the usual ones. Page-Hinkley (Page 1954) sums what exceeds their mean
    and an allowance; ADWIN (Bifet and Gavaldà 2007) compares the halves of a window it keeps; ``fixed`` fires every
    `period` windows, whatever they hold.

    Args:
        trigger: Which.
        period: Of ``fixed``, in windows.

    Raises:
        ConfigError: an unknown trigger, or one that needs the package ``river`` where it is not installed.
    """

    def __init__(self, trigger: Trigger = "page_hinkley", *, period: int = 20) -> None:
        if trigger not in TRIGGERS:
            raise ConfigError(f"unknown trigger `{trigger}`", allowed=", ".join(TRIGGERS))
        self._trigger, self._period = trigger, period
        self._mean, self._deviation, self._count = 0.0, 1.0, 0
        self._detector = self._fresh()

    def rebase(self, usual: Sequence[float]) -> None:
        """Start again, with these scores as the usual ones; two or more."""
        self._mean = float(np.mean(usual))
        self._deviation = max(float(np.std(usual, ddof=1)), 1e-9)
        self._count = 0
        self._detector = self._fresh()
        for value in usual if self._detector is not None else ():
            self._detector.update((value - self._mean) / self._deviation)

    def __call__(self, score: float) -> bool:
        """Whether the change is certain with this score, the next in time."""
        if self._detector is None:
            self._count += 1
            return self._count % self._period == 0
        self._detector.update((score - self._mean) / self._deviation)
        return bool(self._detector.drift_detected)

    def _fresh(self) -> Any:
        if self._trigger == "fixed":
            return None
        try:
            from river import drift
        except ImportError:
            raise ConfigError(
                f"the trigger `{self._trigger}` needs the package river",
                hint="pip install 'hwsearch[adapt]', or use the trigger `fixed`",
            ) from None
        if self._trigger == "adwin":
            return drift.ADWIN(clock=1)  # type: ignore[no-untyped-call]
        return drift.PageHinkley(min_instances=1, delta=ALLOWANCE, threshold=THRESHOLD, mode="up")
