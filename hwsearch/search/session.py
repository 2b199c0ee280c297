"""A search of one target, opened: its folder is held, its evaluator runs, its baselines are evaluated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hwsearch.compress.recover import is_trained
from hwsearch.config import StudyConfig
from hwsearch.search import storage
from hwsearch.search.evaluate import Evaluator, Subject
from hwsearch.search.folder import claim, locked
from hwsearch.search.guided.guidance import Guidance
from hwsearch.search.guided.proposer import GuidedProposer
from hwsearch.search.latency import compute_table, record_explanation
from hwsearch.search.loop import Search, run_baselines, tell
from hwsearch.search.prepare import for_target, identity, space_for
from hwsearch.search.progress import Progress, Watcher
from hwsearch.search.proposals import LayerProposer, Proposer
from hwsearch.search.run import Identity, storage_url
from hwsearch.search.samplers import make_sampler
from hwsearch.types import Target


@dataclass(frozen=True, slots=True)
class Session:
    """What works on one run folder; only while it is open."""

    folder: Path
    identity: Identity
    evaluator: Evaluator
    search: Search


@contextmanager
def opened(
    config: StudyConfig,
    subject: Subject,
    target: Target,
    folder: Path,
    *,
    watch: Watcher,
    stop: threading.Event,
    extend: int | None = None,
) -> Iterator[Session]:
    """The search of `target` in `folder` as far as it has got, with its baselines.

    Raises:
        ConfigError: the folder holds a search of something else, or another process has it.
    """
    own = for_target(config, target)
    wanted = identity(subject, target, space_for(subject, target, own), own)
    with locked(folder), storage.failures_explained(storage_url(own, folder)):
        owner, study_name = claim(folder, wanted, own)
        compute_table(subject.network, wanted.space, target, own)
        epochs = partial(_tell_epoch, watch, target.name)
        with Evaluator(subject, target, own, folder, stop=stop.is_set, on_epoch=epochs) as evaluator:
            search = _search(own, wanted, evaluator, owner, study_name, extend, watch, stop)
            for trial in search.trials:
                evaluator.remember(trial)
            tell(search, "latency", record_explanation(evaluator.latency, folder))
            run_baselines(search)
            yield Session(folder, wanted, evaluator, search)


def _search(
    config: StudyConfig,
    wanted: Identity,
    evaluator: Evaluator,
    owner: str,
    study_name: str,
    extend: int | None,
    watch: Watcher,
    stop: threading.Event,
) -> Search:
    """The search with its database and whoever proposes; what an earlier process left undone is taken up."""
    seed, sampler, folder = config.search.seed, config.search.sampler, evaluator.folder
    study = storage.open_study(
        storage_url(config, folder),
        study_name,
        objectives=config.objectives,
        higher_is_better=evaluator.subject.metric.higher_is_better,
        sampler=make_sampler(sampler, seed),
    )
    storage.reclaim(study, owner)
    trials = storage.read_trials(study)
    if trials:  # a sampler restarted with its first seed would propose its first candidates again
        study.sampler = make_sampler(sampler, seed + len(trials))
    searched = sum(not is_trained(trial.candidate) for trial in trials)
    total = searched + extend if extend is not None else config.search.evaluations
    layers = LayerProposer(study, wanted.space, wanted.source, seed=seed, budget=total)
    proposer: Proposer = layers
    if sampler == "guided":
        guidance = Guidance(evaluator, wanted, config, folder, watch=watch, stop=stop)
        proposer = GuidedProposer(study, layers, guidance, limit_ms=config.limits.latency_ms, seed=seed)
    return Search(
        config=config,
        identity=wanted,
        study=study,
        evaluator=evaluator,
        proposer=proposer,
        owner=owner,
        watch=watch,
        stop=stop,
        total=total,
    )


def _tell_epoch(watch: Watcher, target: str, epoch: int, loss: float) -> None:
    watch(Progress(target=target, stage="recover", done=epoch, total=0, message=f"epoch {epoch}, loss {loss:.3f}"))
