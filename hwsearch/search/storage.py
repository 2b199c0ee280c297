"""The study's memory: an Optuna storage in which every evaluation is complete before the next begins.

Each Optuna trial carries the attribute ``record``, our `Trial` as JSON, written before Optuna is told the values. A
kill between the two steps is mended on the next start (`reclaim`): a trial with a record is told, one without is given
up and its numbers are queued again.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from hwsearch.errors import ConfigError
from hwsearch.types import Candidate, Success, Trial, from_json, to_json

RECORD = "record"
CANDIDATE = "candidate"
NUMBERED = "numbered"
BASELINE = "baseline"
OWNER = "owner"
SAME_AS = "same_as"
OBJECTIVES = "objectives"

PARSED = 4096
"""Records kept as evaluations in memory."""


def open_study(
    url: str, name: str, *, objectives: tuple[str, ...], higher_is_better: bool, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """The Optuna study called `name` at a database URL, created if it is not there.

    Raises:
        ConfigError: the database cannot be reached or holds something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions: list[Literal["maximize", "minimize"]] = [
        "maximize" if objective == "accuracy" and higher_is_better else "minimize" for objective in objectives
    ]
    try:
        study = optuna.create_study(
            storage=url, study_name=name, directions=directions, sampler=sampler, load_if_exists=True
        )
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
        cause = str(error.__cause__ or error).split("\n", 1)[0]
        raise ConfigError(
            f"cannot open the study storage: {cause}",
            where=f"search.storage = {_without_password(url)}",
            hint="check the URL and that its database driver is installed",
        ) from error
    if not study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr(OBJECTIVES, objectives)
    if [d.name.lower() for d in study.directions] != directions or objectives_of(study) != objectives:
        raise ConfigError(
            f"study `{name}` exists with other objectives",
            where=f"objectives = {list(objectives)}",
            hint="use another run folder or study name",
        )
    return study


@contextmanager
def failures_explained(url: str) -> Iterator[None]:
    """Turn a database that fails in the middle of a search (a full disk, a lost server) into one clear error.

    Raises:
        ConfigError: what the database said; finished evaluations are safe.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise ConfigError(
            f"the study storage failed: {cause}",
            where=f"storage = {_without_password(url)}",
            hint="make room or restore the database, then run the same command again: finished evaluations are kept",
        ) from error


def read_trials(study: optuna.Study) -> tuple[Trial, ...]:
    """Every finished evaluation, in order, each candidate once."""
    return tuple(
        _trial_of(frozen.user_attrs[RECORD])
        for frozen in study.get_trials(deepcopy=False)
        if RECORD in frozen.user_attrs and frozen.state.is_finished()
    )


@lru_cache(maxsize=PARSED)
def _trial_of(record: str) -> Trial:
    """The evaluation in a record. A search and whoever watches it read all of them again and again."""
    return from_json(Trial, json.loads(record))


def record(study: optuna.Study, running: optuna.Trial, trial: Trial) -> None:
    """Write the evaluation down, then tell the sampler."""
    running.set_user_attr(RECORD, json.dumps(to_json(trial)))
    for name, violation in trial.constraints.items():
        running.set_constraint(name, violation)
    _tell(study, running.number, trial)


def repeat(study: optuna.Study, running: optuna.Trial, trial: Trial) -> None:
    """Tell the sampler that its proposal equals an evaluation already made."""
    running.set_user_attr(SAME_AS, trial.number)
    for name, violation in trial.constraints.items():
        running.set_constraint(name, violation)
    _tell(study, running.number, trial)


def reclaim(study: optuna.Study, owner: str) -> None:
    """Finish or give up what an earlier process of this run folder left running."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if frozen.user_attrs.get(OWNER) != owner:
            continue
        if RECORD in frozen.user_attrs:
            _tell(study, frozen.number, _trial_of(frozen.user_attrs[RECORD]))
        else:
            study.tell(frozen.number, state=TrialState.FAIL)
            study.enqueue_trial(frozen.params, user_attrs=_handed_on(frozen.user_attrs))


def queued(study: optuna.Study) -> list[Candidate]:
    """Candidates that wait for their evaluation."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [from_json(Candidate, json.loads(f.user_attrs[CANDIDATE])) for f in waiting if CANDIDATE in f.user_attrs]


def values(trial: Trial, objectives: tuple[str, ...]) -> list[float]:
    """The evaluation as one number per objective."""
    assert isinstance(trial.outcome, Success)
    known = {
        "accuracy": trial.outcome.accuracy.value,
        "latency": trial.outcome.latency.best_ms,
        "size": float(trial.outcome.size_bytes),
        "energy": trial.outcome.energy.net_mj if trial.outcome.energy else math.nan,
    }
    return [known[objective] for objective in objectives]


def _tell(study: optuna.Study, number: int, trial: Trial) -> None:
    if isinstance(trial.outcome, Success):
        study.tell(number, values(trial, objectives_of(study)))
    else:
        study.tell(number, state=TrialState.FAIL)


def objectives_of(study: optuna.Study) -> tuple[str, ...]:
    """The objectives the study was opened for."""
    return tuple(study.user_attrs.get(OBJECTIVES, ("accuracy", "latency", "size")[: len(study.directions)]))


def _handed_on(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in (CANDIDATE, NUMBERED, BASELINE) if name in attributes}


def _sqlite_has_study(path: Path, name: str) -> bool:
    """Whether the study is in the file, asked without Optuna.

    Opening a file that a search is just creating, Optuna would create the same tables again, and one of the two fails.
    """
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)) as connection:
            found = connection.execute("SELECT 1 FROM studies WHERE study_name = ?", (name,)).fetchone()
    except sqlite3.OperationalError:  # no table yet
        return False
    return found is not None


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return url.rpartition("@")[2]


def load_trials(url: str, name: str) -> tuple[Trial, ...]:
    """Every finished evaluation of the study called `name`; for readers, who change nothing.

    Raises:
        ConfigError: the database or the study in it is not there.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url.startswith("sqlite:///") and not _sqlite_has_study(Path(url.removeprefix("sqlite:///")), name):
        return ()
    try:
        return read_trials(optuna.load_study(study_name=name, storage=url))
    except KeyError:
        return ()
    except (SQLAlchemyError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"cannot read the study storage: {str(error).partition(chr(10))[0]}",
            where=f"storage = {_without_password(url)}",
        ) from error
