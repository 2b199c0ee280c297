"""The loop: baselines first, then ask, evaluate, record; stop by budget or on request; then the finalists."""

from __future__ import annotations

import datetime as dt
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
from torch import nn

from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError, SearchFailedError, did_you_mean
from hwsearch.model.data import Splits
from hwsearch.model.metric import Metric
from hwsearch.search import storage
from hwsearch.search.evaluate import Evaluator, Subject
from hwsearch.search.finalists import finalise
from hwsearch.search.folder import claim, locked
from hwsearch.search.limits import constraints, corner
from hwsearch.search.prepare import identity, load_subject, ready_target, space_for
from hwsearch.search.progress import Progress, Watcher, silent
from hwsearch.search.proposals import LayerProposer, Proposer, enqueue
from hwsearch.search.run import Identity, Run, storage_url
from hwsearch.search.samplers import make_sampler
from hwsearch.search.stopping import stalled
from hwsearch.space.space import baselines
from hwsearch.types import Accuracy, Candidate, Failure, Success, Trial


@dataclass(slots=True)
class Search:
    """One search in progress: the study in the database, the evaluator, and who is watching."""

    config: StudyConfig
    identity: Identity
    study: optuna.Study
    evaluator: Evaluator
    proposer: Proposer
    owner: str
    watch: Watcher
    stop: threading.Event
    total: int

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every finished evaluation, read from the database."""
        return storage.read_trials(self.study)


def run_study(
    config: StudyConfig,
    *,
    out: Path,
    extend: int | None = None,
    only: str | None = None,
    progress: Watcher = silent,
    stop: threading.Event | None = None,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    metric: Metric | None = None,
) -> list[Run]:
    """Search every target of the study and return their runs; resumes what is already there.

    Args:
        config: The study.
        out: Folder of the study; each target gets a folder below it.
        extend: Evaluations to add to what is finished, instead of filling up to ``search.evaluations``.
        only: Search this target alone.
        progress: Told what happens.
        stop: When set, the running evaluation is finished, state is kept and the search ends early.
        module: Replaces the network the study names.
        splits: Replace the data the study names.
        metric: Replaces the metric the study names.

    Raises:
        ConfigError: bad input, or the folder holds a search of something else.
        BackendUnavailableError: a target's runtime is missing.
        SearchFailedError: every evaluation failed.
    """
    targets = _targets(config, only)
    ready = {name: ready_target(name, config) for name in targets}
    stop = stop or threading.Event()
    progress(Progress(target=targets[0], stage="prepare", done=0, total=0, message="loading model and data"))
    subject = load_subject(config, module=module, splits=splits, metric=metric)
    runs = []
    for name in targets:
        space = space_for(subject, ready[name], config)
        wanted = identity(subject, ready[name], space, config)
        folder = out / Path(name).stem
        with locked(folder), storage.failures_explained(storage_url(config, folder)):
            _search_target(config, subject, wanted, folder, extend, progress, stop)
        runs.append(Run.open(folder))
        if stop.is_set():
            break
    return runs


def _search_target(
    config: StudyConfig,
    subject: Subject,
    wanted: Identity,
    folder: Path,
    extend: int | None,
    progress: Watcher,
    stop: threading.Event,
) -> None:
    owner, study_name = claim(folder, wanted, config)
    study = storage.open_study(
        storage_url(config, folder),
        study_name,
        objectives=config.objectives,
        higher_is_better=subject.metric.higher_is_better,
        sampler=make_sampler(config.search.sampler, config.search.seed),
    )
    storage.reclaim(study, owner)
    finished = len(storage.read_trials(study))
    if finished:  # a sampler restarted with its first seed would propose its first candidates again
        study.sampler = make_sampler(config.search.sampler, config.search.seed + finished)
    with Evaluator(subject, wanted.target, config, folder) as evaluator:
        total = finished + extend if extend is not None else config.search.evaluations
        search = Search(
            config=config,
            identity=wanted,
            study=study,
            evaluator=evaluator,
            proposer=LayerProposer(study, wanted.space, wanted.source, seed=config.search.seed, budget=total),
            owner=owner,
            watch=progress,
            stop=stop,
            total=total,
        )
        for trial in search.trials:
            evaluator.remember(trial)
        _run_baselines(search)
        _run_loop(search)
        if not any(isinstance(trial.outcome, Success) for trial in search.trials):
            raise _all_failed(search.trials)
        if not stop.is_set():
            _tell(search, "finalists", "measuring the finalists together")
            finalise(folder, search.trials, evaluator, wanted)
    _tell(search, "done", "")


def _run_baselines(search: Search) -> None:
    """Evaluate the uniform settings; the fp32 model is the reference of every later measurement."""
    for name, candidate in baselines(search.identity.space).items():
        if not _known(search.trials, candidate) and not search.stop.is_set():
            _tell(search, "baselines", f"baseline {name}")
            enqueue(search.study, candidate, search.proposer.numbers(candidate), baseline=name)
            _step(search)


def _run_loop(search: Search) -> None:
    started, deadline = time.monotonic(), _deadline(search.config)
    first = len(search.trials)
    while len(search.trials) < search.total and not search.stop.is_set():
        if time.monotonic() > deadline or _stalled(search):
            break
        done = len(search.trials)
        pace = (time.monotonic() - started) / (done - first) if done > first else None
        _tell(search, "search", "", seconds_left=pace * (search.total - done) if pace else None)
        search.proposer.queue(search.trials)
        if not _step(search) and not search.proposer.queue_unseen(search.trials):
            break


def _stalled(search: Search) -> bool:
    trials, config = search.trials, search.config
    return stalled(trials, corner(trials, config), config.search.patience)


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
    outcome, seconds = search.evaluator.evaluate(candidate, baseline=baseline is not None)
    trial = Trial(
        number=running.number,
        candidate=candidate,
        baseline=baseline,
        outcome=outcome,
        constraints=constraints(outcome, search.config, _yardstick(search.trials)),
        seconds=seconds,
        finished_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    storage.record(search.study, running, trial)
    search.evaluator.remember(trial)
    return True


def _known(trials: tuple[Trial, ...], candidate: Candidate) -> Trial | None:
    return next((trial for trial in trials if trial.candidate == candidate), None)


def _yardstick(trials: tuple[Trial, ...]) -> Accuracy | None:
    """Accuracy of the widest baseline."""
    found = (t.outcome for t in trials if t.baseline is not None)
    return next((outcome.accuracy for outcome in found if isinstance(outcome, Success)), None)


def _tell(search: Search, stage: str, message: str, *, seconds_left: float | None = None) -> None:
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


def _targets(config: StudyConfig, only: str | None) -> list[str]:
    if only is None:
        return list(config.targets)
    if only not in config.targets:
        raise ConfigError(
            f"the study has no target `{only}`",
            allowed=", ".join(config.targets),
            hint=did_you_mean(only, config.targets),
        )
    return [only]


def _deadline(config: StudyConfig) -> float:
    minutes = config.search.stop_minutes
    return time.monotonic() + (60 * minutes if minutes else float("inf"))


def _all_failed(trials: tuple[Trial, ...]) -> SearchFailedError:
    first = next((t.outcome for t in trials if isinstance(t.outcome, Failure)), None)
    where = f"{first.stage}: {first.message}" if first else "no evaluation was made"
    return SearchFailedError(f"all {len(trials)} evaluations failed", where=where, hint=first.hint if first else None)
