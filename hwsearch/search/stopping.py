"""When a search has found what it will find."""

from __future__ import annotations

from collections.abc import Sequence

from hwsearch.search.front import costs_of
from hwsearch.search.pareto import hypervolume
from hwsearch.types import Success, Trial

LEAST_GAIN = 0.001  # of the hypervolume


def stalled(trials: Sequence[Trial], corner: tuple[float, float] | None, patience: int | None) -> bool:
    """Whether the last `patience` evaluations together gained less than `LEAST_GAIN` of the hypervolume.

    Args:
        trials: In the order in which they were made; those of baselines do not count as patience.
        corner: Costs of accuracy and latency beyond which a model does not count.
        patience: None to go on for ever.
    """
    if corner is None or patience is None:
        return False
    searched = [number for number, trial in enumerate(trials) if trial.baseline is None]
    if len(searched) <= patience:
        return False
    before, now = (_covered(found, corner) for found in (trials[: searched[-patience]], trials))
    return now - before < LEAST_GAIN * now


def _covered(trials: Sequence[Trial], corner: tuple[float, float]) -> float:
    feasible = (t.outcome for t in trials if t.feasible)
    return hypervolume([costs_of(o.accuracy, o.latency) for o in feasible if isinstance(o, Success)], corner)
