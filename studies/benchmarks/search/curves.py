"""Curves of hypervolume over evaluations out of what `compare.py run` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hwsearch.search.front import WORTH_KEEPING, costs_of
from hwsearch.search.pareto import hypervolume
from hwsearch.types import Success, Trial, from_json

AT = (5, 10, 20, 50, 100)  # evaluations
Points = list[tuple[float, float] | None]


def report(folder: Path, faster_than: str = "fp32") -> None:
    """Write curves.csv, curves.html and summary.md: hypervolume relative to the front of everything evaluated.

    Only models count that are faster than the baseline `faster_than` and keep enough of the original's accuracy.
    """
    trials = {path.stem: _trials(path) for path in sorted(folder.glob("*-*.json"))}
    runs = {name: [_costs(trial) for trial in of_run] for name, of_run in trials.items()}
    baselines = {trial.baseline: _costs(trial) for of_run in trials.values() for trial in of_run if trial.baseline}
    original, slowest = baselines["fp32"], baselines[faster_than]
    assert original is not None
    assert slowest is not None
    corner = (original[0] + (1 - WORTH_KEEPING) * abs(original[0]), slowest[1])
    best = hypervolume([p for points in runs.values() for p in points if p], corner)
    curves = pd.DataFrame(
        [
            {"method": name.rpartition("-")[0], "seed": int(name.rpartition("-")[2]), "evaluations": n, "share": share}
            for name, points in runs.items()
            for n, share in enumerate(_curve(points, corner, best), start=1)
        ]
    )
    curves.to_csv(folder / "curves.csv", index=False)
    _figure(curves).write_html(folder / "curves.html", include_plotlyjs="cdn")
    summary = _summary(curves)
    (folder / "summary.md").write_text(summary)
    print(summary)


def _trials(path: Path) -> list[Trial]:
    return [from_json(Trial, entry) for entry in json.loads(path.read_text())]


def _costs(trial: Trial) -> tuple[float, float] | None:
    """Of an evaluation; None for a failure."""
    outcome = trial.outcome
    return costs_of(outcome.accuracy, outcome.latency) if isinstance(outcome, Success) else None


def _curve(points: Points, corner: tuple[float, float], best: float) -> list[float]:
    seen: list[tuple[float, float]] = []
    shares = []
    for point in points:
        seen += [point] if point else []
        shares.append(hypervolume(seen, corner) / best if seen else 0.0)
    return shares


def _summary(curves: pd.DataFrame) -> str:
    """A table: mean (least) share at some numbers of evaluations, and evaluations needed for some shares."""
    lines = ["| method | seeds | " + " | ".join(f"at {n}" for n in AT) + " | to .95 | to .97 |"]
    lines.append("|---" * (4 + len(AT)) + "|")
    means = curves[curves.evaluations == AT[2]].groupby("method").share.mean()
    for method in means.sort_values(ascending=False).index:
        found = curves[curves.method == method]
        cells = []
        for n in AT:
            shares = found[found.evaluations == n].share
            cells.append(f"{shares.mean():.3f} ({shares.min():.3f})" if len(shares) else "")
        cells += [_needed(found, share) for share in (0.95, 0.97)]
        lines.append(f"| {method} | {found.seed.nunique()} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _needed(found: pd.DataFrame, share: float) -> str:
    """Evaluations until the share is reached, median over the seeds; ``> n`` where most seeds never reach it."""
    firsts = [
        group[group.share >= share].evaluations.min() if (group.share >= share).any() else np.inf
        for _, group in found.groupby("seed")
    ]
    middle = float(np.median(firsts))
    return f"{middle:.0f}" if np.isfinite(middle) else f"> {found.evaluations.max()}"


def _figure(curves: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    for method, found in curves.groupby("method"):
        mean = found.groupby("evaluations").share.mean()
        figure.add_scatter(x=mean.index, y=mean.to_numpy(), name=str(method), mode="lines")
    figure.update_layout(xaxis_title="evaluations", yaxis_title="hypervolume, share of the best known front")
    return figure
