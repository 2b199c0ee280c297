"""What a report reads of a run, and the units its numbers are shown in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hwsearch.config import StudyConfig
from hwsearch.search.effects.effects import Sensitivity
from hwsearch.types import Device, Front, SearchSpace, SourceModel, Success, Target, Trial


class RunView(Protocol):
    """The part of `hwsearch.search.run.Run` a report is made of."""

    @property
    def path(self) -> Path:
        """The run folder, as it stands in export commands."""

    @property
    def config(self) -> StudyConfig:
        """The resolved study."""

    @property
    def source(self) -> SourceModel:
        """The network that was given."""

    @property
    def space(self) -> SearchSpace:
        """What could be chosen."""

    @property
    def target(self) -> Target:
        """What was searched for."""

    @property
    def device(self) -> Device:
        """Where the numbers come from."""

    @property
    def data(self) -> dict[str, str]:
        """Split -> hash of its examples."""

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version."""

    @property
    def created(self) -> str:
        """When the search was started."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every finished evaluation, in order."""

    @property
    def front(self) -> Front | None:
        """None before the first success."""

    @property
    def sensitivity(self) -> Sensitivity | None:
        """What each single choice does; None if the search did not ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """How the study's metric is shown: ``top1`` in percent, any other metric as it is.

    `factor` turns a stored value into a shown one; `points` is the unit of a difference.
    """

    metric: str
    label: str
    factor: float
    suffix: str
    points: str
    decimals: int
    higher_is_better: bool

    @property
    def axis(self) -> str:
        """Title of an axis, with the unit and, where it is not obvious, the direction."""
        unit = " (%)" if self.suffix else ""
        return f"{self.label}{unit}" if self.higher_is_better else f"{self.label}{unit}, lower is better"

    def show(self, value: float) -> str:
        """A stored value as text, e.g. ``91.2 %``; halves upwards, as the page's script has it."""
        return f"{self.factor * value * (1 + 1e-12):.{self.decimals}f}{self.suffix}"


def units(run: RunView) -> Units:
    """The units of the run's metric."""
    first = next((t.outcome.accuracy for t in run.trials if isinstance(t.outcome, Success)), None)
    metric = first.metric if first else run.config.metric.rpartition(":")[2]
    higher = first.higher_is_better if first else run.config.direction == "maximize"
    percent = metric == "top1"
    return Units(
        metric=metric,
        label="top-1 accuracy" if percent else metric,
        factor=100.0 if percent else 1.0,
        suffix=" %" if percent else "",
        points="points" if percent else metric,
        decimals=2 if percent else 4,
        higher_is_better=higher,
    )
