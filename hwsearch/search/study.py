"""A search from beginning to end, target by target; it goes on where it was stopped."""

from __future__ import annotations

import threading
from pathlib import Path

from torch import nn

from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError, SearchFailedError, did_you_mean
from hwsearch.model.data import Splits
from hwsearch.model.metric import Metric
from hwsearch.search.finalists import finalise
from hwsearch.search.guided.guidance import foresee
from hwsearch.search.guided.predictions import read_predictions, write_predictions
from hwsearch.search.guided.proposer import GuidedProposer
from hwsearch.search.loop import run_loop, tell
from hwsearch.search.prepare import load_subject, ready_target
from hwsearch.search.progress import Progress, Watcher, silent
from hwsearch.search.recovery import recover, searched_enough
from hwsearch.search.run import Run
from hwsearch.search.session import Session, opened
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
        folder = out / Path(name).stem
        with opened(config, subject, ready[name], folder, watch=progress, stop=stop, extend=extend) as session:
            _search_target(session, more=extend is not None)
        runs.append(Run.open(folder))
        if stop.is_set():
            break
    return runs


def _search_target(session: Session, *, more: bool) -> None:
    """Search, train the most promising models, and measure the finalists.

    Args:
        session: Opened.
        more: Whether to search on even where training has begun.
    """
    search = session.search
    ended = "" if searched_enough(search) and not more else run_loop(search)
    if not any(isinstance(trial.outcome, Success) for trial in search.trials):
        raise _all_failed(search.trials)
    _predict(session)
    if search.config.recover.method != "none":
        recover(search, read_predictions(session.folder))
    if not search.stop.is_set():
        tell(search, "finalists", "measuring the finalists together")
        finalise(session.folder, search.trials, session.evaluator, session.identity)
    tell(search, "done", ended)


def _predict(session: Session) -> None:
    """Write down what the search expects of models it has not evaluated, if it expects anything."""
    search, proposer = session.search, session.search.proposer
    if isinstance(proposer, GuidedProposer) and proposer.ready:
        seed = search.config.search.seed
        write_predictions(session.folder, foresee(proposer, session.identity, search.searched, seed=seed))


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
