"""One study on several targets, side by side: what each gains, at what accuracy, and whether it may run there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import ConfigError
from hwsearch.search.legal import Legality, legality
from hwsearch.search.limits import drop_points
from hwsearch.search.pricing.sparsity import sparsity_of
from hwsearch.search.run import Run, run_folders
from hwsearch.types import Accuracy, FrontPoint, Latency, Success

Figures = tuple[Accuracy, Latency]

MAX_DROP = 1.0
"""Points of accuracy against fp32 within which the fastest model is chosen, unless the user says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The chosen model of one target, beside fp32 on the same device.

    Attributes:
        target: Name.
        chip: What it ran on, or would.
        key: Of the model.
        latency_source: ``measured``, ``table`` or ``modelled``: compare only rows with the same.
        ratio: Multiple of fp32's latency.
        drop_points: Against fp32, on the split named by `split`.
        sparsity: Share of the multiply-accumulates that is gone.
    """

    target: str
    chip: str
    key: str
    latency_source: str
    latency_ms: float
    original_ms: float
    ratio: float
    metric: str
    accuracy: float
    drop_points: float
    split: str
    size_bytes: int
    sparsity: float
    legality: Legality


def runs_in(path: Path) -> list[Run]:
    """The runs of a study's folder, one per target.

    Raises:
        ConfigError: there is none.
    """
    folders = run_folders(path)
    return [Run.open(folder) for folder in folders.values()] if folders else [Run.open(path)]


def best_within(run: Run, max_drop: float = MAX_DROP) -> FrontPoint:
    """The fastest model of a front that loses no more than so many points against fp32; fp32 itself, if none does.

    Raises:
        ConfigError: nothing has succeeded yet.
    """
    original = _original(run)
    within = [p for p in run.points() if p.on_front and drop_points(p.accuracy, original.accuracy) <= max_drop]
    return min(within, key=lambda p: p.latency.best_ms, default=original)


def row_of(run: Run, point: FrontPoint) -> Row:
    """What a comparison says of one point of a front."""
    return row(run, point.key, _figures(point), _figures(_original(run)))


def row(run: Run, key: str, figures: Figures, original: Figures) -> Row:
    """What a comparison says of one candidate, given its accuracy and latency, and fp32's."""
    (accuracy, latency), (accurate, slow), trial = figures, original, run.trial(key)
    assert isinstance(trial.outcome, Success)
    return Row(
        target=run.target.name,
        chip=run.device.chip,
        key=key,
        latency_source=latency.source,
        latency_ms=latency.best_ms,
        original_ms=slow.best_ms,
        ratio=latency.best_ms / slow.best_ms,
        metric=accuracy.metric,
        accuracy=accuracy.value,
        drop_points=drop_points(accuracy, accurate),
        split=accuracy.split,
        size_bytes=trial.outcome.artifact.size_bytes,
        sparsity=sparsity_of(trial.candidate, run.source, "macs"),
        legality=legality(run, trial),
    )


def remarks(rows: Iterable[Row]) -> list[str]:
    """What keeps rows from being compared, and what is not legal, one line each."""
    return [line for row in rows for line in _remarks(row)]


def _remarks(row: Row) -> Iterator[str]:
    if row.latency_source != "measured":
        yield f"{row.target}: latency is {row.latency_source}, not measured"
    if row.split != "report":
        yield f"{row.target}: accuracy is of the {row.split} split, since the search is not over"
    for problem in row.legality.problems:
        yield f"{row.target}: {problem}"


def _figures(point: FrontPoint) -> Figures:
    return point.accuracy, point.latency


def _original(run: Run) -> FrontPoint:
    """The widest baseline: the first that was evaluated."""
    found = sorted((p for p in run.points() if p.baseline is not None), key=lambda p: p.trial)
    if not found:
        raise ConfigError(f"{run.path} has no front yet", hint=f"search on: hwsearch search {run.path / 'study.yaml'}")
    return found[0]
