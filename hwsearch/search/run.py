"""The reading side of a search: everything a run folder holds, as records.

runs/<name>/<target>/
  run.json      what was searched: source model, space, target, device, data hashes, versions
  study.yaml    the resolved study
  study.db      the evaluations (unless the study names another storage)
  front.json    the finalists, measured again together and scored on the report split
  latency.json  where latencies come from, and why
  sensitivity.json   what each single choice does alone, where the search asked
  work/         arrays, artifacts and logs
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsearch.config import StudyConfig, load_study
from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.search.effects.effects import Sensitivity, read_sensitivity
from hwsearch.search.front import choose, provisional
from hwsearch.search.pareto import pick
from hwsearch.search.storage import load_trials
from hwsearch.store import read_json, write_json
from hwsearch.types import (
    SCHEMA_VERSION,
    Artifact,
    Device,
    Front,
    FrontPoint,
    SearchSpace,
    SourceModel,
    Success,
    Target,
    Trial,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    import pandas as pd

FRONT_FILE = "front.json"
LATENCY_FILE = "latency.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes two searches the same search; a run folder holds exactly one."""

    source: SourceModel
    target: Target
    space: SearchSpace
    device: Device
    metric: str
    data: dict[str, str]
    objectives: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A search of one target, as it stands on disk.

    Example:
        >>> run = hs.Run.open(run_folder)
        >>> run.trials[0].baseline, run.target.name
        ('fp32', 'fake')
        >>> run.pick(min_accuracy=0.0).on_front
        True

    Attributes:
        path: The run folder.
        config: The resolved study.
        trials: Every finished evaluation, failures included, in order.
        front: None until the first evaluation succeeded; `front.final` says whether finalists were measured again.
    """

    path: Path
    config: StudyConfig
    source: SourceModel
    target: Target
    space: SearchSpace
    device: Device
    data: dict[str, str]
    versions: dict[str, str]
    created: str
    trials: tuple[Trial, ...]
    front: Front | None

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run in a folder.

        Raises:
            ConfigError: the folder is no run, or is damaged.
        """
        folder = Path(path)
        facts = read_facts(folder)
        config = load_study(folder / "study.yaml")
        found = identity_of(facts)
        trials = load_trials(storage_url(config, folder), facts["study_name"])
        return cls(
            path=folder,
            config=config,
            source=found.source,
            target=found.target,
            space=found.space,
            device=found.device,
            data=found.data,
            versions=facts["versions"],
            created=facts["created"],
            trials=trials,
            front=final_front(folder, trials)
            or provisional(trials, target=found.target.name, device=found.device, objectives=found.objectives),
        )

    def trial(self, key: str) -> Trial:
        """The evaluation of the candidate whose key starts with `key`.

        Raises:
            ConfigError: no such candidate, or several.
        """
        found = [trial for trial in self.trials if trial.candidate.key.startswith(key)]
        if len(found) == 1:
            return found[0]
        keys = [trial.candidate.key for trial in self.trials]
        problem = "several candidates start with" if found else "no candidate"
        raise ConfigError(
            f"{problem} `{key}` in {self.path}",
            allowed=f"one of {len(keys)} keys, e.g. {', '.join(keys[:4])}",
            hint=did_you_mean(key, keys),
        )

    @property
    def sensitivity(self) -> Sensitivity | None:
        """What each single choice does alone; None if the search did not ask."""
        return read_sensitivity(self.path)

    @property
    def latency_explanation(self) -> str:
        """Where latencies come from and why, in words; empty for a run of an older version."""
        path = self.path / LATENCY_FILE
        return str(read_json(path)["explanation"]) if path.exists() else ""

    def artifact(self, key: str) -> Artifact:
        """A candidate's artifact, with paths that can be opened."""
        outcome = self.trial(key).outcome
        if not isinstance(outcome, Success):
            raise ConfigError(
                f"candidate `{key}` failed, so it has no artifact", hint=f"hwsearch show {self.path} {key}"
            )
        return dataclasses.replace(
            outcome.artifact,
            path=str(self.path / outcome.artifact.path),
            files=tuple(str(self.path / file) for file in outcome.artifact.files),
        )

    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        max_size_mb: float | None = None,
    ) -> FrontPoint:
        """The best point of the front within the limits: the most accurate, or the fastest if only accuracy is limited.

        Raises:
            ConfigError: nothing satisfies the limits; says by how much the nearest point misses.
        """
        return pick(self.points(), max_latency_ms=max_latency_ms, min_accuracy=min_accuracy, max_size_mb=max_size_mb)

    def points(self) -> tuple[FrontPoint, ...]:
        """The points of the front, baselines included; empty before the first success."""
        return self.front.points if self.front else ()

    def to_frame(self) -> pd.DataFrame:
        """One row per evaluation: key, accuracy, latency, size, choices."""
        import pandas as pd

        return pd.DataFrame([_row(trial) for trial in self.trials])


def final_front(folder: Path, trials: Sequence[Trial]) -> Front | None:
    """The front in front.json if it is that of these trials; None if there is none or the search has gone on since."""
    path = folder / FRONT_FILE
    if not path.exists():
        return None
    known = read_json(path)
    if known.get("finalists") != sorted(trial.candidate.key for trial in choose(trials)):
        return None
    return from_json(Front, known["front"])


def write_facts(
    folder: Path, identity: Identity, *, owner: str, study_name: str, versions: dict[str, str], created: str
) -> None:
    """Write run.json: what this folder is a search of."""
    write_json(
        folder / "run.json",
        {
            "schema_version": SCHEMA_VERSION,
            "created": created,
            "owner": owner,
            "study_name": study_name,
            "versions": versions,
            "identity": to_json(identity),
        },
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json as a dictionary.

    Raises:
        ConfigError: the folder is no run folder, or of another schema version.
    """
    if not (folder / "run.json").exists():
        raise ConfigError(
            f"{folder} is not a run folder",
            where="run.json not found",
            hint=where_instead(folder),
        )
    facts: dict[str, Any] = read_json(folder / "run.json")
    if facts.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{folder} was written by another version of hwsearch",
            where=f"schema_version = {facts.get('schema_version')}",
            allowed=str(SCHEMA_VERSION),
        )
    return facts


def identity_of(facts: dict[str, Any]) -> Identity:
    """The identity recorded in run.json."""
    try:
        return from_json(Identity, facts["identity"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("run.json is damaged", where=str(error)) from error


def run_folders(path: Path) -> dict[str, Path]:
    """Target -> run folder, for a run folder itself or for the folder of a study with several targets."""
    if (path / "run.json").exists():
        return {path.name: path}
    return {entry.parent.name: entry.parent for entry in sorted(path.glob("*/run.json"))}


def find_run(path: Path | str, target: str | None = None) -> Run:
    """The run at `path`, or the one for `target` below it.

    Raises:
        ConfigError: there is none, or several and no target was named.
    """
    folders = run_folders(Path(path))
    if target is not None:
        if target not in folders:
            raise ConfigError(
                f"no run for target `{target}` in {path}",
                allowed=", ".join(folders) or "nothing there",
                hint=did_you_mean(target, folders),
            )
        return Run.open(folders[target])
    if len(folders) > 1:
        raise ConfigError(f"{path} holds several targets", allowed=", ".join(folders), hint="name one with --target")
    return Run.open(next(iter(folders.values()), Path(path)))


def storage_url(config: StudyConfig, folder: Path) -> str:
    """The Optuna storage of a run: the study's own URL, or an SQLite file in the folder."""
    return config.search.storage or f"sqlite:///{(folder / 'study.db').resolve()}"


def where_instead(folder: Path) -> str:
    """What to open in place of a folder that is no run: runs below it, of a study of its name, or beside it."""
    deeper = sorted({str(path.parent.parent) for path in folder.glob("*/*/run.json")})
    if deeper:
        return f"it holds {', '.join(deeper[:4])}: name one of them"
    if run_folders(found := Path("runs") / folder.name):
        return f"did you mean `{found}`?"
    beside = [str(path) for path in folder.parent.glob("*") if run_folders(path)]
    return did_you_mean(str(folder), beside) or "start one with `hwsearch search STUDY.yaml`, then come back"


def _row(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "key": trial.candidate.key,
        "baseline": trial.baseline,
        "feasible": trial.feasible,
        "fidelity": trial.fidelity,
    }
    if isinstance(trial.outcome, Success):
        found = trial.outcome
        row |= {
            "accuracy": found.accuracy.value,
            "latency_ms": found.latency.best_ms,
            "latency_ratio": found.latency.ratio,
            "size_bytes": found.size_bytes,
            "energy_mj": found.energy.net_mj if found.energy else None,
            "params": found.params,
            "macs": found.macs,
        }
    else:
        row |= {"error": f"{trial.outcome.stage}: {trial.outcome.message}"}
    row |= {f"keep:{group}": kept for group, kept in trial.candidate.keep.items()}
    row |= {f"precision:{layer}": name for layer, name in trial.candidate.precision.items()}
    row |= {f"pattern:{layer}": name for layer, name in trial.candidate.pattern.items()}
    row["dropped"] = ", ".join(trial.candidate.dropped)
    return row
