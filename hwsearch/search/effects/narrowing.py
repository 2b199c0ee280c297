"""Steps from a network to a narrower one, each judged by the accuracy it costs on the search split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from hwsearch.errors import EvaluationError
from hwsearch.search.effects.effects import EVERYWHERE, Sensitivity
from hwsearch.search.limits import drop_points
from hwsearch.search.pricing.sparsity import Numbers
from hwsearch.space.space import decode
from hwsearch.types import PRECISIONS, Accuracy, Candidate, SearchSpace, SourceModel


class Lost:
    """Callable: candidate -> points of accuracy it loses; infinite if it cannot be built. Each is built once.

    Args:
        score: Builds and judges a candidate.
        original: What it is compared with.
    """

    def __init__(self, score: Callable[[Candidate], Accuracy], original: Accuracy) -> None:
        self._score, self._original = score, original
        self._known: dict[str, float] = {}

    def __call__(self, candidate: Candidate) -> float:
        """Points lost against the original; negative for a gain."""
        if candidate.key not in self._known:
            self._known[candidate.key] = self._asked(candidate)
        return self._known[candidate.key]

    def _asked(self, candidate: Candidate) -> float:
        try:
            return drop_points(self._score(candidate), self._original)
        except EvaluationError:
            return math.inf


def best_ranges(lost: Lost, candidate: Candidate, methods: Sequence[str]) -> str:
    """The range method by which a candidate loses least; of equal ones the first, which is the default."""
    return min(methods, key=lambda method: lost(with_ranges(candidate, method, methods[0])))


def with_ranges(candidate: Candidate, method: str, default: str) -> Candidate:
    """The candidate calibrated by a range method; the default goes without saying."""
    return candidate if method == default else dataclasses.replace(candidate, recipe={"ranges": method})


def narrowest_precisions(
    found: Sensitivity, space: SearchSpace, fits: Callable[[Numbers], bool]
) -> tuple[Numbers, float]:
    """The narrowest precision of each layer whose sensitivity is within a tolerance, and the largest one that fits."""
    losses = {e.loss for e in found.effects if e.kind == "precision" and math.isfinite(e.loss)}
    tolerances = [-1.0, *sorted(losses)]  # the first lets nothing through
    choices = [_precisions(found, space, tolerance) for tolerance in tolerances]
    chosen = last_that_fits(len(choices), lambda i: fits(choices[i]))
    return choices[chosen], tolerances[chosen]


def last_that_fits(count: int, fits: Callable[[int], bool]) -> int:
    """By bisection the largest index below `count` that fits, if all before it do; the first is taken on trust."""
    low, high = 0, count - 1
    if high == 0 or fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def quantised(space: SearchSpace, source: SourceModel) -> Candidate:
    """The whole network with every layer in its narrowest precision."""
    narrowest = dict.fromkeys((f"precision:{layer}" for layer in space.precisions), 0)
    return decode(space, source, narrowest)


def _precisions(found: Sensitivity, space: SearchSpace, tolerance: float) -> Numbers:
    numbers = {}
    for layer, offered in space.precisions.items():
        integers = [name for name in offered[:-1] if PRECISIONS[name].integer]
        fitting = (i for i, name in enumerate(integers) if found.loss("precision", layer, name)[0] <= tolerance)
        if (first := next(fitting, None)) is not None:
            numbers[f"precision:{layer}"] = first
    floats = enumerate(space.float_precisions[:-1])
    fitting = (i for i, name in floats if found.loss("precision", EVERYWHERE, name)[0] <= tolerance)
    if (first := next(fitting, None)) is not None:
        numbers["float"] = first
    return numbers
