"""What a running search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One moment of a search.

    Attributes:
        target: Target being searched.
        stage: ``prepare``, ``latency``, ``baselines``, ``sensitivity``, ``search``, ``recover``, ``finalists``
            or ``done``.
        done, total: Finished evaluations and how many are planned; in ``sensitivity``, of single choices; in
            ``recover``, of epochs.
        best: The best feasible model so far in words, e.g. ``0.31 ms at 91.2 %, 2.4x faster than fp32``.
        seconds_left: Estimate, or None while unknown.
        message: What is happening now.
    """

    target: str
    stage: str
    done: int
    total: int
    best: str = ""
    seconds_left: float | None = None
    message: str = ""


Watcher = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The watcher that shows nothing."""
