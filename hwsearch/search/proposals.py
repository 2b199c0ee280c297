"""Who says which candidate is evaluated next, and how a queued candidate travels through Optuna."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import optuna

from hwsearch.search import storage
from hwsearch.search.samplers import suggest
from hwsearch.space.seeds import seeds
from hwsearch.space.space import baselines, decode, dimensions, encode
from hwsearch.types import Candidate, SearchSpace, SourceModel, Trial, from_json, to_json

DRAWS = 1000


class Proposer(Protocol):
    """Proposes candidates of one study; Optuna numbers them and keeps them."""

    def numbers(self, candidate: Candidate) -> dict[str, float]:
        """Optuna's parameters for a candidate; empty if none describe it."""

    def queue(self, trials: Sequence[Trial]) -> None:
        """Queue the next candidate, or leave the choice to the study's sampler."""

    def candidate(self, running: optuna.Trial) -> Candidate:
        """What a trial just asked for stands for."""

    def queue_unseen(self, trials: Sequence[Trial]) -> bool:
        """Queue a candidate not evaluated yet, since the last proposal was; False if none can be found."""


class LayerProposer:
    """Every choice of the space is a dimension of its own, proposed by Optuna's sampler.

    Args:
        study: The Optuna study.
        space, source: What may be chosen.
        seed: Of the study.
        budget: Evaluations the search may make; half of them at most are starting candidates.
    """

    def __init__(self, study: optuna.Study, space: SearchSpace, source: SourceModel, *, seed: int, budget: int) -> None:
        self._study, self._space, self._source, self._seed = study, space, source, seed
        self._budget = budget

    def numbers(self, candidate: Candidate) -> dict[str, float]:
        """The position of each choice among those offered."""
        return dict(encode(self._space, candidate) or {})

    def queue(self, trials: Sequence[Trial]) -> None:
        """Queue the starting candidates of a new study; the sampler has the say later."""
        if len(trials) == len(baselines(self._space)):
            for candidate in seeds(self._space, self._source)[: self._budget // 2]:
                self._enqueue(candidate)

    def candidate(self, running: optuna.Trial) -> Candidate:
        """The candidate a trial names, or the one its numbers decode to."""
        queued = queued_candidate(running)
        if queued is None:
            return decode(self._space, self._source, suggest(running, dimensions(self._space)))
        if running.user_attrs[storage.NUMBERED]:
            suggest(running, dimensions(self._space))
        return queued

    def queue_unseen(self, trials: Sequence[Trial]) -> bool:
        """Queue a random candidate."""
        known = {trial.candidate.key for trial in trials}
        rng = np.random.default_rng((self._seed, len(self._study.get_trials(deepcopy=False))))
        for _ in range(DRAWS):
            numbers = {dimension.name: int(rng.integers(dimension.size)) for dimension in dimensions(self._space)}
            candidate = decode(self._space, self._source, numbers)
            if candidate.key not in known:
                self._enqueue(candidate)
                return True
        return False

    def _enqueue(self, candidate: Candidate) -> None:
        enqueue(self._study, candidate, self.numbers(candidate))


def enqueue(
    study: optuna.Study, candidate: Candidate, numbers: Mapping[str, float], *, baseline: str | None = None
) -> None:
    """Queue a candidate by its numbers; it travels along, since no numbers may describe it."""
    attributes = {storage.CANDIDATE: json.dumps(to_json(candidate)), storage.NUMBERED: bool(numbers)}
    if baseline is not None:
        attributes[storage.BASELINE] = baseline
    study.enqueue_trial(dict(numbers), user_attrs=attributes, skip_if_exists=bool(numbers))


def queued_candidate(running: optuna.Trial) -> Candidate | None:
    """The candidate a trial was queued with; None where the sampler chose its numbers."""
    queued = running.user_attrs.get(storage.CANDIDATE)
    return None if queued is None else from_json(Candidate, json.loads(queued))
