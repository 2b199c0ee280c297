"""A search from beginning to end, target by target; it goes on where it was stopped."""

from __future__ import annotations

import threading
from pathlib import Path

from torch import nn

from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError, SearchFailedError, did_you_mean
from hwsearch.model.data import Splits
from hwsearch.model.metric import Metric
from hwsearch.search import storage
from hwsearch.search.evaluate import Evaluator, Subject
from hwsearch.search.finalists import finalise
from hwsearch.search.folder import claim, locked
from hwsearch.search.guidance import Guidance, foresee
from hwsearch.search.guided import GuidedProposer
from hwsearch.search.latency import record_explanation
from hwsearch.search.loop import Search, run_baselines, run_loop, tell
from hwsearch.search.predictions import write_predictions
from hwsearch.search.prepare import identity, load_subject, ready_target, space_for
from hwsearch.search.progress import Progress, Watcher, silent
from hwsearch.search.proposals import LayerProposer, Proposer
from hwsearch.search.run import Identity, Run, storage_url
from hwsearch.search.samplers import make_sampler
from hwsearch.types import Failure, Success, Trial


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
    subject = load_subject(
        config,
        module=module,
        splits=splits,
        metric=metric,
        trained=out.parent / "trained",
        on_epoch=lambda epoch, loss: progress(_training(config, targets[0], epoch, loss)),
    )
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
        seed = config.search.seed
        layers = LayerProposer(study, wanted.space, wanted.source, seed=seed, budget=total)
        proposer: Proposer = layers
        if config.search.sampler == "guided":
            guidance = Guidance(evaluator, wanted, config, folder, watch=progress, stop=stop)
            proposer = GuidedProposer(study, layers, guidance, limit_ms=config.limits.latency_ms, seed=seed)
        search = Search(
            config=config,
            identity=wanted,
            study=study,
            evaluator=evaluator,
            proposer=proposer,
            owner=owner,
            watch=progress,
            stop=stop,
            total=total,
        )
        for trial in search.trials:
            evaluator.remember(trial)
        tell(search, "latency", record_explanation(evaluator.latency, folder))
        run_baselines(search)
        ended = run_loop(search)
        if not any(isinstance(trial.outcome, Success) for trial in search.trials):
            raise _all_failed(search.trials)
        if isinstance(proposer, GuidedProposer) and proposer.ready:
            write_predictions(folder, foresee(proposer, wanted, search.trials, seed=seed))
        if not stop.is_set():
            tell(search, "finalists", "measuring the finalists together")
            finalise(folder, search.trials, evaluator, wanted)
    tell(search, "done", ended)


def _training(config: StudyConfig, target: str, epoch: int, loss: float) -> Progress:
    epochs = config.reparam.epochs if config.reparam else 0
    return Progress(target=target, stage="train", done=epoch, total=epochs, message=f"loss {loss:.3f}")


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


def _all_failed(trials: tuple[Trial, ...]) -> SearchFailedError:
    first = next((t.outcome for t in trials if isinstance(t.outcome, Failure)), None)
    where = f"{first.stage}: {first.message}" if first else "no evaluation was made"
    return SearchFailedError(f"all {len(trials)} evaluations failed", where=where, hint=first.hint if first else None)
