"""The methods that are compared: the product's samplers, and two that need no sampler at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna

from hwsearch.config import StudyConfig
from hwsearch.search.effects.sensitivity import measure_sensitivities
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.guided.guidance import Guidance
from hwsearch.search.guided.proposer import GuidedProposer
from hwsearch.search.progress import silent
from hwsearch.search.proposals import LayerProposer, Proposer, enqueue, queued_candidate
from hwsearch.search.run import Identity
from hwsearch.space.space import baselines, decode, dimensions
from hwsearch.types import Candidate, Trial


@dataclass(frozen=True)
class Shared:
    """What all methods and seeds have in common."""

    config: StudyConfig
    identity: Identity
    evaluator: Evaluator
    folder: Path

    @cached_property
    def losses(self) -> Callable[[str, str, int | str], float]:
        """Loss of a single choice, measured once."""
        space, source = self.identity.space, self.identity.source
        found = measure_sensitivities(self.evaluator, space, source, self.folder, silent, threading.Event())
        return lambda kind, name, value: found.loss(kind, name, value)[0]


class ListProposer(LayerProposer):
    """Proposes candidates one after the other from a fixed list; random ones when it is used up."""

    def __init__(self, study: optuna.Study, shared: Shared, candidates: Iterator[Candidate], *, seed: int) -> None:
        super().__init__(study, shared.identity.space, shared.identity.source, seed=seed, budget=0)
        self._study, self._candidates = study, candidates

    def numbers(self, candidate: Candidate) -> dict[str, float]:  # noqa: ARG002 - of the protocol
        """Empty: Optuna has no say."""
        return {}

    def queue(self, trials: Sequence[Trial]) -> None:
        """Queue the next of the list that is not known."""
        known = {trial.candidate.key for trial in trials}
        fresh = next((c for c in self._candidates if c.key not in known), None)
        if fresh is None:
            self.queue_unseen(trials)
        else:
            enqueue(self._study, fresh, {})

    def candidate(self, running: optuna.Trial) -> Candidate:
        """What was queued."""
        found = queued_candidate(running)
        assert found is not None
        return found


def make_proposer(method: str, study: optuna.Study, shared: Shared, *, seed: int, budget: int) -> Proposer:
    """The proposer called `method`; ``seeded-tpe`` starts with one change at a time, as the product's ``tpe`` does."""
    space, source = shared.identity.space, shared.identity.source
    if method == "guided":
        guidance = Guidance(shared.evaluator, shared.identity, shared.config, shared.folder)
        layers = LayerProposer(study, space, source, seed=seed, budget=0)
        return GuidedProposer(study, layers, guidance, limit_ms=None, seed=seed)
    if method == "uniform":
        return ListProposer(study, shared, uniform_settings(shared), seed=seed)
    if method == "greedy":
        return ListProposer(study, shared, greedy_settings(shared, budget), seed=seed)
    starting = budget if method.startswith("seeded-") else 0
    return LayerProposer(study, space, source, seed=seed, budget=starting)


def uniform_settings(shared: Shared) -> Iterator[Candidate]:
    """What people set by hand: the same share of channels everywhere, or in the inner groups only, in one precision."""
    space, source = shared.identity.space, shared.identity.source
    inner = {group.name for group in source.groups if group.kind == "inner"}
    precisions = {d.name: d.size for d in dimensions(space) if d.name.startswith("precision:")}
    for rung in range(max(precisions.values(), default=1)):
        numbers = {name: min(rung, size - 1) for name, size in precisions.items()}
        for share in (0.875, 0.75, 0.625, 0.5, 0.375, 0.25):
            for names in ([n for n in space.widths if n in inner], list(space.widths)):
                yield decode(space, source, numbers | {f"keep:{n}": _nearest(space.widths[n], share) for n in names})


def greedy_settings(shared: Shared, count: int) -> Iterator[Candidate]:
    """The path of smallest loss per millisecond gained, one choice at a time, evenly thinned to `count`.

    Starts at the narrowest uniform precision, as all methods know it; gains in latency are those of the table.
    """
    space, source = shared.identity.space, shared.identity.source
    predict = shared.evaluator.latency.predictor
    assert predict is not None
    start = list(baselines(space).values())[-1]
    numbers = {d.name: d.size - 1 for d in dimensions(space)}
    numbers |= {d.name: 0 for d in dimensions(space) if d.name.startswith("precision:") or d.name == "float"}
    path, latency = [], predict(start)[0]
    while True:
        steps = []
        for name in numbers:
            kind, _, what = name.partition(":")
            if kind in ("keep", "drop") and numbers[name] > 0:
                narrower = numbers | {name: numbers[name] - 1}
                gain = latency - predict(decode(space, source, narrower))[0]
                loss = _loss(shared, kind, what, narrower[name]) - _loss(shared, kind, what, numbers[name])
                steps.append((max(loss, 0.0) / gain, name) if gain > 0 else (np.inf, name))
        if not steps or min(steps)[0] == np.inf:
            break
        numbers[min(steps)[1]] -= 1
        candidate = decode(space, source, numbers)
        latency = predict(candidate)[0]
        path.append(candidate)
    # Not beyond the middle of the path: what is left there is of no use to anybody.
    useful = list({c.key: c for c in path}.values())
    yield from (useful[i] for i in np.linspace(0, len(useful) - 1, min(count, len(useful))).astype(int))


def _loss(shared: Shared, kind: str, name: str, rung: int) -> float:
    value = shared.identity.space.widths[name][rung] if kind == "keep" else 1 - rung
    return shared.losses(kind, name, value)


def _nearest(widths: Sequence[int], share: float) -> int:
    return min(range(len(widths)), key=lambda i: abs(widths[i] - share * widths[-1]))
