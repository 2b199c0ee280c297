"""Every view of a run by name: what the page, the live dashboard and image files draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import figures, frames, layer_frames
from hwsearch.report.importance import block_importance
from hwsearch.report.verdict import Verdict, verdict
from hwsearch.report.view import RunView, Units, units


@dataclass(frozen=True)
class Facts:
    """The facts of a run, each worked out once, when first asked for."""

    run: RunView

    @cached_property
    def units(self) -> Units:
        """How the metric is shown."""
        return units(self.run)

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row per successful evaluation."""
        return frames.evaluations(self.run)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per successful evaluation and layer."""
        return layer_frames.layers(self.run)

    @cached_property
    def verdict(self) -> Verdict:
        """What to ship, and why."""
        return verdict(self.evaluations, self.units, self.run.config.limits)


@dataclass(frozen=True, slots=True)
class View:
    """One view: its `title` in menus, and how it is drawn; None where a run has nothing to draw."""

    title: str
    draw: Callable[[Facts], go.Figure | None]


def _importance(facts: Facts) -> go.Figure | None:
    shares = block_importance(facts.evaluations, facts.layers, facts.run.source)
    return figures.importance(shares, facts.units) if len(shares) else None


def _agreement(facts: Facts) -> go.Figure | None:
    return figures.agreement(facts.evaluations) if facts.evaluations["final"].any() else None


def _sensitivity(facts: Facts) -> go.Figure | None:
    run = facts.run
    return None if run.sensitivity is None else figures.sensitivity_map(run.sensitivity, run.source)


VIEWS: dict[str, View] = {
    "pareto": View("Accuracy against latency", lambda f: figures.pareto(f.evaluations, f.units)),
    "layer_formats": View(
        "Number format per layer", lambda f: figures.layer_formats(f.layers, f.evaluations, f.run.source, f.units)
    ),
    "layer_channels": View(
        "Channels per layer", lambda f: figures.layer_channels(f.layers, f.evaluations, f.run.source, f.units)
    ),
    "layer_latency": View("Time by layer", lambda f: figures.layer_latency(f.layers)),
    "sensitivity": View("What each choice alone does", _sensitivity),
    "importance": View("Which blocks decide", _importance),
    "hypervolume": View(
        "Progress", lambda f: figures.hypervolume(frames.hypervolume(f.run), frames.random_search(f.run))
    ),
    "stage_time": View("Time by stage", lambda f: figures.stage_time(frames.stages(f.run))),
    "parallel": View("Parallel coordinates", lambda f: figures.parallel(f.evaluations, f.units)),
    "agreement": View("Search against final measurement", _agreement),
}
