"""How far an evaluation misses what the study demands."""

from __future__ import annotations

from hwsearch.config import StudyConfig
from hwsearch.types import Accuracy, Failure, Success


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
        found["size_mb"] = outcome.artifact.size_bytes / 1e6 - limits.size_mb
    if limits.accuracy_drop_points is not None and yardstick is not None:
        found["accuracy_drop_points"] = _drop_points(outcome.accuracy, yardstick) - limits.accuracy_drop_points
    return found


def _drop_points(accuracy: Accuracy, yardstick: Accuracy) -> float:
    loss = yardstick.value - accuracy.value
    return 100 * (loss if accuracy.higher_is_better else -loss)
