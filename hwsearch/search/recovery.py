"""Which models deserve training, and training them: the last step of a search before its finalists.

Training is worth its minutes where it is expected to add most hypervolume, or to make the fastest model within a wanted
accuracy: at models that are fast already, and whose damage it will probably undo. How much it undoes is learned from
those trained before. A trained model is a candidate of its own, with the recipe among its choices, and is built, scored
and measured like any other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hwsearch.compress.fake_quantize import ROUNDED
from hwsearch.compress.recover import Recipe, is_trained, learning_rate, untrained
from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError, TrainingStoppedError
from hwsearch.search import storage
from hwsearch.search.front import costs_of
from hwsearch.search.guided.predictions import Predictions
from hwsearch.search.limits import corner
from hwsearch.search.loop import Search, evaluated, tell
from hwsearch.search.pareto import hypervolume_gains
from hwsearch.search.stopping import stalled
from hwsearch.types import Candidate, Success, Trial

Floats = NDArray[np.float64]

STAGE = "recover"
PROBES = 5  # predicted models evaluated before each training, at most: most turn out less good
LEAST_SHARE = 0.02  # of the minutes: less is not worth beginning with
ROUNDING_HURTS = 0.003  # share of the accuracy that a uniform number format loses
LUCK = tuple(NormalDist().inv_cdf((i + 0.5) / 20) for i in range(20))  # standard deviations, equally likely


@dataclass(frozen=True, slots=True)
class Healing:
    """What training is expected to leave of a lost share of accuracy: a factor of it.

    The prior is five minutes of ResNet-20 (`studies/cifar10-resnet20`): of five models that had lost .8 to 5.8 % of
    their accuracy, training left 0 to .45 of that on the search split, and .35 to .55 on the report split.

    Attributes:
        log_factor: Natural logarithm of the factor.
        spread: Standard deviation of that of one model.
    """

    log_factor: float
    spread: float

    PRIOR, PRIOR_SPREAD, NOISE = math.log(0.4), 0.3, 0.3
    TOLD_APART = 0.002  # losses below it say no more than that they are small

    @classmethod
    def learned(cls, seen: Sequence[tuple[float, float]]) -> Healing:
        """From shares lost before and after training."""
        damaged = [(before, max(after, cls.TOLD_APART)) for before, after in seen if before > cls.TOLD_APART]
        logs = [math.log(after / before) for before, after in damaged]
        precision = cls.PRIOR_SPREAD**-2 + len(logs) * cls.NOISE**-2
        mean = (cls.PRIOR * cls.PRIOR_SPREAD**-2 + sum(logs) * cls.NOISE**-2) / precision
        return cls(mean, math.sqrt(1 / precision + cls.NOISE**2))

    def left(self, shares: Floats, luck: float = 0.0) -> Floats:
        """Shares lost after training, which never makes them larger."""
        lost = np.maximum(shares, 0.0)
        return np.minimum(lost, np.maximum(lost * math.exp(self.log_factor + luck * self.spread), self.TOLD_APART))


@dataclass(frozen=True, slots=True)
class Prospect:
    """A model that may be trained.

    Attributes:
        lost: Share of the original's accuracy that it has lost, measured or expected.
        latency_ms: Measured or expected.
        evaluated: Which of the two.
    """

    candidate: Candidate
    lost: float
    latency_ms: float
    evaluated: bool


def searched_enough(search: Search) -> bool:
    """Whether nothing is left but training: it was interrupted, or followed on a search that had stopped improving."""
    if any(is_trained(candidate) for candidate in storage.queued(search.study)):
        return True
    trials, config = search.searched, search.config
    return len(trials) < len(search.trials) and stalled(trials, corner(trials, config), config.search.patience)


def recover(search: Search, predictions: Predictions | None) -> None:
    """Train the most promising models, one after the other, as long as the study's minutes last.

    What an interrupted process had begun is finished first. A model that was only predicted is evaluated before it is
    trained, and then has to be the most promising one still.

    Args:
        search: At the end of its loop.
        predictions: What the solver expects of models that were not evaluated; None if it was not asked.
    """
    config, probed = search.config.recover, 0
    while not search.stop.is_set():
        for candidate in filter(is_trained, storage.queued(search.study)):
            _train(search, candidate)
        trials = search.trials
        trained = [trial for trial in trials if is_trained(trial.candidate)]
        minutes = config.minutes - sum(trial.seconds.get(STAGE, 0.0) for trial in trained) / 60
        if len(trained) >= config.top or minutes < LEAST_SHARE * config.minutes:
            return
        prospect = asked_for(trials, config.models) or most_promising(
            trials, predictions if probed < PROBES else None, search.config
        )
        if prospect is None:
            return
        if not prospect.evaluated:
            probed += 1
            tell(search, STAGE, "evaluating a model that training may bring to the front")
            evaluated(search, prospect.candidate)
            continue
        probed = 0
        _train(search, with_recipe(prospect, trials, search.config, minutes / (config.top - len(trained))))


def _train(search: Search, candidate: Candidate) -> None:
    """Train and evaluate a candidate; if that is interrupted, the next process goes on with it."""
    minutes = Recipe.of(candidate).minutes
    tell(search, STAGE, f"training {untrained(candidate).key} for {minutes:.1f} minutes")
    with suppress(TrainingStoppedError):
        evaluated(search, candidate)


def with_recipe(prospect: Prospect, trials: Sequence[Trial], config: StudyConfig, minutes: float) -> Candidate:
    """The candidate of a model trained for so many minutes as the study says."""
    wanted = config.recover
    recipe = Recipe(
        method="finetune" if wanted.method == "finetune" else "distill",
        minutes=minutes,
        lr=wanted.lr or learning_rate(prospect.lost),
        qat=_rounding_hurts(prospect.candidate, trials) if wanted.qat == "auto" else wanted.qat,
        weight=wanted.weight,
        temperature=wanted.temperature,
        features=wanted.features,
        batch=wanted.batch,
        weight_decay=wanted.weight_decay,
        shift=wanted.shift,
        flip=wanted.flip,
        seed=wanted.seed,
    )
    candidate = prospect.candidate
    return dataclasses.replace(candidate, recipe=dict(sorted((candidate.recipe | recipe.choices()).items())))


def asked_for(trials: Sequence[Trial], keys: Sequence[str]) -> Prospect | None:
    """The first model that the study names and that was not trained yet; None if it names no more.

    Raises:
        ConfigError: none, or several, of the evaluated models have such a key.
    """
    known = [prospect for prospect in _evaluated(trials) if not is_trained(prospect.candidate)]
    for key in keys:
        found = [prospect for prospect in known if prospect.candidate.key.startswith(key)]
        if len(found) != 1:
            raise ConfigError(
                f"{'several models have' if found else 'no evaluated model has'} the key `{key}`",
                where="recover.models",
                allowed="keys as `hwsearch front` and the report show them",
            )
        if found[0].candidate.key not in _trained_keys(trials):
            return found[0]
    return None


def most_promising(trials: Sequence[Trial], predictions: Predictions | None, config: StudyConfig) -> Prospect | None:
    """The model whose training is expected to gain most; None if none gains anything.

    What counts is hypervolume; or where the study says what trained models may lose, the time saved within that.

    Args:
        trials: All of the run, trained models included.
        predictions: Of models that were not evaluated.
        config: The study, for its limits.
    """
    limit = corner(trials, _aimed(config))
    found = [] if limit is None else list(_prospects(trials, predictions))
    if limit is None or not found:
        return None
    original = _original(trials)
    healing = Healing.learned(_experience(trials))
    known = [
        costs_of(t.outcome.accuracy, t.outcome.latency) for t in trials if t.feasible and isinstance(t.outcome, Success)
    ]
    lost, latency = (np.array([getattr(p, name) for p in found]) for name in ("lost", "latency_ms"))
    gained = hypervolume_gains if config.recover.accuracy_drop_points is None else _time_saved
    costs = [original + abs(original) * healing.left(lost, luck) for luck in LUCK]
    gains = np.mean([gained(np.column_stack([cost, latency]), known, limit) for cost in costs], axis=0)
    best = int(gains.argmax())
    return found[best] if gains[best] > 0 else None


def _time_saved(points: Floats, known: Sequence[tuple[float, float]], limit: tuple[float, float]) -> Floats:
    """How much faster each point is than every known model within the limit of accuracy; 0 if it is beyond that."""
    fastest = min((latency for cost, latency in known if cost <= limit[0]), default=limit[1])
    return np.where(points[:, 0] <= limit[0], np.maximum(fastest - points[:, 1], 0.0), 0.0)


def _aimed(config: StudyConfig) -> StudyConfig:
    """The study with the limit that trained models are to keep."""
    aim = config.recover.accuracy_drop_points
    if aim is None:
        return config
    return config.model_copy(update={"limits": config.limits.model_copy(update={"accuracy_drop_points": aim})})


def _trained_keys(trials: Sequence[Trial]) -> set[str]:
    """Keys of the models that were trained, and of what became of them."""
    return {key for trial in trials if is_trained(c := trial.candidate) for key in (c.key, untrained(c).key)}


def _prospects(trials: Sequence[Trial], predictions: Predictions | None) -> Iterator[Prospect]:
    """Models evaluated and not trained yet, uniform ones included, and those the solver knows beside them."""
    trained, seen = _trained_keys(trials), {trial.candidate.key for trial in trials}
    yield from (prospect for prospect in _evaluated(trials) if prospect.candidate.key not in trained)
    original = _original(trials)
    for model in predictions.models if predictions else ():
        if model.candidate.key not in seen:
            cost = -model.accuracy if _higher_is_better(trials) else model.accuracy
            yield Prospect(model.candidate, _lost(cost, original), model.latency_ms, evaluated=False)


def _evaluated(trials: Sequence[Trial]) -> Iterator[Prospect]:
    original = _original(trials)
    for trial in trials:
        if isinstance(trial.outcome, Success):
            cost, latency = costs_of(trial.outcome.accuracy, trial.outcome.latency)
            yield Prospect(trial.candidate, _lost(cost, original), latency, evaluated=True)


def _experience(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Shares of accuracy lost before and after training, of every model that was trained."""
    costs = {
        t.candidate.key: costs_of(t.outcome.accuracy, t.outcome.latency)[0]
        for t in trials
        if isinstance(t.outcome, Success)
    }
    original = _original(trials)
    pairs = [(untrained(t.candidate).key, t.candidate.key) for t in trials if is_trained(t.candidate)]
    return [
        (_lost(costs[before], original), _lost(costs[after], original))
        for before, after in pairs
        if before in costs and after in costs
    ]


def _rounding_hurts(candidate: Candidate, trials: Sequence[Trial]) -> bool:
    """Whether a number format the candidate uses loses much even where nothing is pruned."""
    original = _original(trials)
    lost: Mapping[str | None, float] = {
        t.baseline: _lost(costs_of(t.outcome.accuracy, t.outcome.latency)[0], original)
        for t in trials
        if isinstance(t.outcome, Success)
    }
    return any(lost.get(name, 1.0) > ROUNDING_HURTS for name in set(candidate.precision.values()) & set(ROUNDED))


def _original(trials: Sequence[Trial]) -> float:
    """Cost (see `costs_of`) of the widest baseline's accuracy."""
    found = (t.outcome for t in trials if t.baseline is not None)
    return next((costs_of(o.accuracy, o.latency)[0] for o in found if isinstance(o, Success)), 0.0)


def _lost(cost: float, original: float) -> float:
    return (cost - original) / max(abs(original), 1e-12)


def _higher_is_better(trials: Sequence[Trial]) -> bool:
    return all(t.outcome.accuracy.higher_is_better for t in trials if isinstance(t.outcome, Success))
