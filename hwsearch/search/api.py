"""Searching from Python, with live objects or with a study file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hwsearch.config import StudyConfig, load_study, make_study
from hwsearch.model.data import splits_from
from hwsearch.model.metric import metric_from
from hwsearch.search.compression import Compressed, Goals, compress_study
from hwsearch.search.progress import Watcher, silent
from hwsearch.search.run import Run, find_run
from hwsearch.search.study import run_study
from hwsearch.types import FrontPoint, Trial

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Chosen:
    """One point of a front, with the run it came from; what `hwsearch.export` takes."""

    run: Run
    point: FrontPoint

    @property
    def key(self) -> str:
        """Key of the candidate."""
        return self.point.key

    @property
    def latency_ms(self) -> float:
        """Measured latency: the minimum of the round medians."""
        return self.point.latency.best_ms

    @property
    def accuracy(self) -> float:
        """Value of the study's metric."""
        return self.point.accuracy.value


@dataclass(frozen=True, slots=True)
class StudyFront:
    """The points no other point beats in both accuracy and latency, fastest first."""

    run: Run

    def __iter__(self) -> Iterator[Chosen]:
        return iter([Chosen(self.run, point) for point in self.run.points() if point.on_front])

    def __len__(self) -> int:
        return sum(point.on_front for point in self.run.points())

    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        max_size_mb: float | None = None,
    ) -> Chosen:
        """The best point within the limits: the most accurate, or the fastest if only accuracy is limited.

        Raises:
            ConfigError: nothing satisfies them; the message names the nearest point.
        """
        point = self.run.pick(max_latency_ms=max_latency_ms, min_accuracy=min_accuracy, max_size_mb=max_size_mb)
        return Chosen(self.run, point)


@dataclass(frozen=True, slots=True)
class Study:
    """A finished or interrupted search of one target.

    Example:
        >>> study = hs.Study.open(run_folder)
        >>> frame = study.to_frame()
        >>> frame.loc[frame["baseline"] == "fp32", "key"].item() == study.trials[0].candidate.key
        True
        >>> fastest = min(study.front(), key=lambda point: point.latency_ms)
        >>> hs.report(study.run, "report.html").name
        'report.html'
    """

    run: Run

    @classmethod
    def open(cls, path: Path | str, target: str | None = None) -> Study:
        """The study in a run folder.

        Raises:
            ConfigError: there is none, or several targets and none was named.
        """
        return cls(find_run(path, target))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every evaluation, failures included."""
        return self.run.trials

    def front(self) -> StudyFront:
        """The Pareto front, finalists measured again together and scored on the report split."""
        return StudyFront(self.run)

    def to_frame(self) -> pd.DataFrame:
        """One row per evaluation."""
        return self.run.to_frame()


def search(
    model: nn.Module | str | Path,
    *,
    data: Mapping[str, tuple[NDArray[Any], NDArray[Any]]] | str | None = None,
    metric: str | Callable[[NDArray[np.float32], NDArray[Any]], float] = "top1",
    target: str = "ort-cpu",
    evaluations: int = 50,
    out: Path | str = "runs",
    name: str | None = None,
    progress: Watcher = silent,
    **settings: Any,
) -> Study:
    """Search one target and return the study; resumes if it exists.

    Example:
        >>> study = hs.search(network, data=data, metric="top1", target=target, evaluations=4, **settings)
        >>> best = study.front().pick(max_latency_ms=1000)  # the most accurate model under the limit
        >>> len(study.trials), best.accuracy >= 0
        (4, True)

    Args:
        model: A network, or the path of a study file (then the arguments after `metric` other than `target`, `out` and
            `progress` come from the file).
        data: ``{"calibrate": (inputs, targets), "search": ..., "report": ...}``, and ``"train"`` where models are to be
            trained; or ``{"train": ..., "test": ...}``; inputs [N, ...] as the network takes them. Or the name of a
            data source.
        metric: ``top1`` or a function ``(outputs, targets) -> float``.
        target: A built-in target or a target file.
        evaluations: Candidates to evaluate.
        out: Folder of runs.
        name: Folder of this study below `out`; the network's class name by default.
        progress: Told what happens.
        settings: Other keys of a study file, e.g. ``limits={"latency_ms": 0.5}``.

    Raises:
        HwSearchError: bad input, a missing runtime, or every evaluation failed.
    """
    if not isinstance(model, nn.Module):
        config = load_study(Path(model))
        only = target if target in config.targets else config.targets[0]
        return Study(run_study(config, out=Path(out) / config.name, only=only, progress=progress)[0])
    config = _config(model, data, metric, target, evaluations, name, settings)
    run = run_study(
        config,
        out=Path(out) / config.name,
        progress=progress,
        module=model.eval(),
        splits=splits_from(data, config.data) if isinstance(data, Mapping) else None,
        metric=metric_from(metric, config.direction) if callable(metric) else None,
    )[0]
    return Study(run)


def compress(
    model: nn.Module | str | Path,
    *,
    data: Mapping[str, tuple[NDArray[Any], NDArray[Any]]] | str | None = None,
    metric: str | Callable[[NDArray[np.float32], NDArray[Any]], float] = "top1",
    target: str = "ort-cpu",
    goals: Goals | None = None,
    out: Path | str = "runs",
    name: str | None = None,
    progress: Watcher = silent,
    **settings: Any,
) -> Compressed:
    """One model made small for a target in minutes, without a search; `hwsearch.export` takes it.

    Example:
        >>> goals = hs.Goals(max_drop=100.0)
        >>> small = hs.compress(network, data=data, target=target, goals=goals, name="small", **settings)
        >>> hs.export(small, "small").name
        'small'

    Args:
        model: A network, or the path of a study file (then `data`, `metric`, `name` and `settings` come from the file).
        data: As for `search`.
        metric: As for `search`.
        target: A built-in target or a target file.
        goals: How much should go, how much accuracy may be lost, and which of the two comes first.
        out: Folder of runs; a search with the same arguments goes on from what is found here.
        name: As for `search`.
        progress: Told what happens.
        settings: Other keys of a study file.

    Raises:
        HwSearchError: bad input, a missing runtime, or no model could be built.

    Example:
        >>> found = hs.compress(network, data=data, target=target, name="small", **settings)
        >>> found.run.trial(found.key).candidate.key == found.key
        True
    """
    if not isinstance(model, nn.Module):
        config = load_study(Path(model))
        folder = Path(out) / config.name
        return compress_study(config, out=folder, targets=[target], goals=goals, progress=progress)[0]
    config = _config(model, data, metric, target, None, name, settings)
    return compress_study(
        config,
        out=Path(out) / config.name,
        targets=[target],
        goals=goals,
        progress=progress,
        module=model.eval(),
        splits=splits_from(data, config.data) if isinstance(data, Mapping) else None,
        metric=metric_from(metric, config.direction) if callable(metric) else None,
    )[0]


def _config(
    model: nn.Module,
    data: object,
    metric: object,
    target: str,
    evaluations: int | None,
    name: str | None,
    settings: dict[str, Any],
) -> StudyConfig:
    kind = type(model)
    search_settings = {**settings.pop("search", {}), **({} if evaluations is None else {"evaluations": evaluations})}
    return make_study(
        {
            "name": name or kind.__name__.lower(),
            "model": f"{kind.__module__}:{kind.__qualname__}",
            "data": data if isinstance(data, str) else {"source": "python"},
            "metric": metric if isinstance(metric, str) else _spelled(metric),
            "target": target,
            "search": search_settings,
            **settings,
        }
    )


def _spelled(function: object) -> str:
    """A live function in the form of a study file, as a record of what was used."""
    name = getattr(function, "__name__", type(function).__name__)
    return f"{getattr(function, '__module__', 'python')}:{re.sub(r'[^A-Za-z0-9_]', '_', name)}"
