"""The loop: baselines first, then propose, evaluate, record; until the budget is spent or nothing improves any more."""

from __future__ import annotations

import datetime as dt
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import optuna

from hwsearch.compress.recover import is_trained
from hwsearch.config import StudyConfig
from hwsearch.search import storage
from hwsearch.search.limits import constraints, corner
from hwsearch.search.progress import Progress, Watcher
from hwsearch.search.proposals import Proposer, enqueue
from hwsearch.search.run import Identity
from hwsearch.search.stopping import stalled
from hwsearch.space.space import baselines
from hwsearch.types import Accuracy, Candidate, Failure, Success, Trial


class Evaluates(Protocol):
    """What the loop needs of an `Evaluator`."""

    def evaluate(self, candidate: Candidate, *, baseline: bool = False) -> tuple[Success | Failure, dict[str, float]]:
        """The result of one candidate and the seconds per stage."""

    def remember(self, trial: Trial) -> None:
        """Take a finished evaluation into account."""


@dataclass(slots=True)
class Search:
    """One search in progress: the study in the database, the evaluator, and who is watching."""

    config: StudyConfig
    identity: Identity
    study: optuna.Study
    evaluator: Evaluates
    proposer: Proposer
    owner: str
    watch: Watcher
    stop: threading.Event
    total: int

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every finished evaluation, read from the database."""
        return storage.read_trials(self.study)

    @property
    def searched(self) -> tuple[Trial, ...]:
        """Those of the search proper: all but models that were trained in the end."""
        return tuple(trial for trial in self.trials if not is_trained(trial.candidate))


def run_baselines(search: Search) -> None:
    """Evaluate the uniform settings; the fp32 model is the reference of every later measurement."""
    for name, candidate in baselines(search.identity.space).items():
        if not _known(search.trials, candidate) and not search.stop.is_set():
            tell(search, "baselines", f"baseline {name}")
            enqueue(search.study, candidate, search.proposer.numbers(candidate), baseline=name)
            _step(search)


def run_loop(search: Search) -> str:
    """Evaluate one proposal after another until the budget is spent, and say why the search ended where it was not."""
    started: float | None = None
    deadline = _deadline(search.config)
    first = len(search.searched)
    while len(search.searched) < search.total and not search.stop.is_set():
        if time.monotonic() > deadline:
            return f"stopped after {search.config.search.stop_minutes:g} minutes"
        if _stalled(search, first):
            return f"stopped: the last {search.config.search.patience} evaluations improved nothing"
        done = len(search.searched)
        pace = (time.monotonic() - started) / (done - first) if started and done > first else None
        tell(search, "search", "", seconds_left=pace * (search.total - done) if pace else None)
        search.proposer.queue(search.searched)
        if search.stop.is_set():
            break
        started = started or time.monotonic()  # not before what the first proposal needs is there
        if not _step(search) and not search.proposer.queue_unseen(search.searched):
            return "every candidate of the space has been evaluated"
    return ""


def _stalled(search: Search, first: int) -> bool:
    """Whether the evaluations of this session, from the `first` on, have stopped improving anything."""
    trials, config = search.searched, search.config
    patience = config.search.patience
    return len(trials) - first >= (patience or 0) and stalled(trials, corner(trials, config), patience)


def evaluated(search: Search, candidate: Candidate) -> Trial:
    """The evaluation of one candidate of the caller's choice; made now, unless there is one already."""
    known = _known(search.trials, candidate)
    if known is None:
        enqueue(search.study, candidate, {})
    while known is None:  # what an interrupted search left queued comes first
        _step(search)
        known = _known(search.trials, candidate)
    return known


def _step(search: Search) -> bool:
    """Ask for one candidate and record its evaluation; False if it was known already."""
    running = search.study.ask()
    running.set_user_attr(storage.OWNER, search.owner)
    candidate = search.proposer.candidate(running)
    known = _known(search.trials, candidate)
    if known is not None:
        storage.repeat(search.study, running, known)
        return False
    baseline = running.user_attrs.get(storage.BASELINE)
    yardstick = _yardstick(search.trials)
    outcome, seconds = search.evaluator.evaluate(candidate, baseline=baseline is not None)
    trial = Trial(
        number=running.number,
        candidate=candidate,
        baseline=baseline,
        outcome=outcome,
        constraints=constraints(outcome, search.config, yardstick),
        seconds=seconds,
        fidelity="F3" if is_trained(candidate) else _fidelity(outcome, yardstick),
        finished_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    storage.record(search.study, running, trial)
    search.evaluator.remember(trial)
    return True


def _fidelity(outcome: Success | Failure, yardstick: Accuracy | None) -> str:
    """``F1`` for a model given up after its first examples."""
    given_up = isinstance(outcome, Success) and yardstick is not None and outcome.accuracy.examples < yardstick.examples
    return "F1" if given_up else "F2"


def _known(trials: tuple[Trial, ...], candidate: Candidate) -> Trial | None:
    return next((trial for trial in trials if trial.candidate == candidate), None)


def _yardstick(trials: tuple[Trial, ...]) -> Accuracy | None:
    """Accuracy of the widest baseline."""
    found = (t.outcome for t in trials if t.baseline is not None)
    return next((outcome.accuracy for outcome in found if isinstance(outcome, Success)), None)


def tell(search: Search, stage: str, message: str, *, seconds_left: float | None = None) -> None:
    """Tell whoever watches where the search stands."""
    trials = search.trials
    search.watch(
        Progress(
            target=search.identity.target.name,
            stage=stage,
            done=len(trials),
            total=max(search.total, len(trials)),
            best=_best_in_words(trials),
            seconds_left=seconds_left,
            message=message,
        )
    )


def _best_in_words(trials: tuple[Trial, ...]) -> str:
    """The fastest feasible model within one point of the widest baseline (else the most accurate), and its gain."""
    found = [(t, t.outcome) for t in trials if t.feasible and isinstance(t.outcome, Success)]
    if not found:
        return ""
    widest = next((o for t, o in found if t.baseline is not None), found[0][1])
    sign = 1 if widest.accuracy.higher_is_better else -1
    close = [
        o for _, o in found if sign * (widest.accuracy.value - o.accuracy.value) <= 0.01 * abs(widest.accuracy.value)
    ]
    best = min(close or [o for _, o in found], key=lambda o: o.latency.best_ms)
    gain = widest.latency.best_ms / best.latency.best_ms
    found_accuracy = f"{best.accuracy.metric} {best.accuracy.value:.4g}"
    return f"{best.latency.best_ms:.3g} ms at {found_accuracy}, {gain:.1f}x faster than fp32"


def _deadline(config: StudyConfig) -> float:
    minutes = config.search.stop_minutes
    return time.monotonic() + (60 * minutes if minutes else float("inf"))
