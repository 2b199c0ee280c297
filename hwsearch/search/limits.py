"""How far an evaluation misses what the study demands."""

from __future__ import annotations

from collections.abc import Sequence

from hwsearch.config import StudyConfig
from hwsearch.search.front import WORTH_KEEPING, costs_of
from hwsearch.types import Accuracy, Failure, Success, Trial


def constraints(outcome: Success | Failure, config: StudyConfig, yardstick: Accuracy | None) -> dict[str, float]:
    """Violation of each limit the study sets, in the limit's own unit; <= 0 is feasible.

    `yardstick` is the fp32 baseline's accuracy; without it the accuracy limit cannot be judged and is left out.
    """
    if isinstance(outcome, Failure):
        return {}
    limits, found = config.limits, {}
    if limits.latency_ms is not None:
        found["latency_ms"] = outcome.latency.best_ms - limits.latency_ms
    if limits.size_mb is not None:
        found["size_mb"] = outcome.size_bytes / 1e6 - limits.size_mb
    if limits.energy_mj is not None and outcome.energy is not None:
        found["energy_mj"] = outcome.energy.net_mj - limits.energy_mj
    if limits.accuracy_drop_points is not None and yardstick is not None:
        found["accuracy_drop_points"] = drop_points(outcome.accuracy, yardstick) - limits.accuracy_drop_points
    return found


def corner(trials: Sequence[Trial], config: StudyConfig) -> tuple[float, float] | None:
    """Costs of accuracy and latency (see `costs_of`) beyond which a model is of no use; None before the first success.

    A useful model is faster than the widest baseline, not much worse (`WORTH_KEEPING`), and within the study's limits.
    """
    widest = next((t.outcome for t in trials if isinstance(t.outcome, Success)), None)
    if widest is None:
        return None
    cost, latency = costs_of(widest.accuracy, widest.latency)
    worst = cost + (1 - WORTH_KEEPING) * abs(cost)
    if config.limits.accuracy_drop_points is not None:
        worst = min(worst, cost + config.limits.accuracy_drop_points / 100)
    return worst, min(latency, config.limits.latency_ms or latency)


def drop_points(accuracy: Accuracy, yardstick: Accuracy) -> float:
    """How much worse one accuracy is than another, in points."""
    loss = yardstick.value - accuracy.value
    return 100 * (loss if accuracy.higher_is_better else -loss)
