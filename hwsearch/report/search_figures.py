"""Figures of the search itself: progress, where the time went, and how the models differ in aggregate."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import style
from hwsearch.report.links import linked
from hwsearch.report.view import Units

STAGES = {"stitch": "prune and repair", "accuracy": "score", "inspect": "read formats back", "recover": "train"}
"""What stages are called where their own name says little."""


def hypervolume(history: pd.DataFrame, random: Sequence[float] = ()) -> go.Figure:
    """Share of the chart the front dominates, after each evaluation; marks show which evaluations widened it.

    `random` is what a search without guidance is expected to reach, from the last baseline on.
    """
    figure = style.figure(
        "Progress of the search",
        "Share of the chart the front dominates (hypervolume), as the search saw it.",
        height=340,
    )
    figure.add_trace(
        go.Scatter(
            x=history["number"].tolist(),
            y=history["hypervolume"].tolist(),
            mode="lines",
            line={"color": style.FRONT, "width": 2, "shape": "hv"},
            hovertemplate="after evaluation %{x}: %{y:.2%}<extra></extra>",
            showlegend=False,
        )
    )
    if len(random):
        first = history.loc[history["baseline"].notna(), "number"].max()
        figure.add_trace(
            go.Scatter(
                x=[first + n for n in range(len(random))],
                y=list(random),
                mode="lines",
                name="random search, as predicted",
                line={"color": style.NEUTRAL, "width": 1.5, "dash": "dot"},
                hovertemplate="%{x} evaluations: %{y:.2%}<extra>random, predicted</extra>",
            )
        )
    improved = history[history["improved"].astype(bool)]
    for rows, name, marker in (
        (improved[improved["baseline"].isna()], "widened the front", {"color": style.FRONT, "size": 8}),
        (improved[improved["baseline"].notna()], "baseline", {"color": style.NEUTRAL, "size": 9, "symbol": "diamond"}),
    ):
        trace = go.Scatter(
            x=rows["number"].tolist(),
            y=rows["hypervolume"].tolist(),
            text=[base or key for base, key in zip(rows["baseline"], rows["key"], strict=True)],
            mode="markers",
            name=name,
            marker=marker,
            hovertemplate="%{text} at evaluation %{x}: %{y:.2%}<extra></extra>",
        )
        figure.add_trace(linked(trace, rows["number"].tolist(), ["x", "y", "text"]))
    figure.update_xaxes(title_text="evaluation")
    figure.update_yaxes(title_text="share dominated", tickformat=".0%", rangemode="tozero")
    return figure


def stage_time(stages: pd.DataFrame) -> go.Figure:
    """Seconds per evaluation, stacked by stage; the legend gives each stage's share of the whole."""
    figure = style.figure(
        "Where the time goes", "Wall time by stage; the legend gives shares of the total.", height=340
    )
    total = stages["seconds"].sum() or 1.0
    names = stages["stage"].drop_duplicates().tolist()
    for i, name in enumerate(names):
        rows = stages[stages["stage"] == name]
        trace = go.Bar(
            x=rows["number"].tolist(),
            y=rows["seconds"].tolist(),
            name=f"{STAGES.get(name, name)} {rows['seconds'].sum() / total:.0%}",
            marker={"color": style.STAGES[i % len(style.STAGES)], "line": {"width": 0}},
            hovertemplate=f"{STAGES.get(name, name)}: %{{y:.2f}} s<br>evaluation %{{x}}<extra></extra>",
        )
        figure.add_trace(linked(trace, rows["number"].tolist(), ["x", "y"]))
    figure.update_layout(barmode="stack", bargap=0.1, legend_traceorder="normal")
    figure.update_xaxes(title_text="evaluation")
    figure.update_yaxes(title_text="wall time (s)", rangemode="tozero")
    return _without_giants(figure, stages.groupby("number")["seconds"].sum())


def _without_giants(figure: go.Figure, totals: pd.Series) -> go.Figure:
    """Keep a few timeouts from flattening all other bars: cut the axis, and say so."""
    usual = 1.6 * totals.quantile(0.9)
    longer = int((totals > usual).sum())
    if longer and totals.max() > 2 * usual:
        figure.update_yaxes(range=[0, usual])
        figure.layout.title.subtitle.text += (
            f" {longer} took longer, up to {totals.max():.0f} s: double-click to see all."
        )
    return figure


def parallel(evaluations: pd.DataFrame, units: Units) -> go.Figure:
    """One line per evaluation over seven aggregates, each axis scaled from its smallest to its largest value."""
    figure = style.figure(
        "What fast and accurate models have in common",
        "One line per model. Each axis runs from its smallest to its largest value.",
        height=360,
    )
    axes = _aggregates(evaluations, units)
    spans = [(float(axes[name].min()), float(axes[name].max())) for name in axes.columns] if len(axes) else []
    groups = (
        ("searched", evaluations["baseline"].isna() & ~evaluations["on_front"].astype(bool), style.SEARCHED, 0.3),
        ("uniform baseline", evaluations["baseline"].notna(), style.NEUTRAL, 0.9),
        ("front", evaluations["baseline"].isna() & evaluations["on_front"].astype(bool), style.FRONT, 0.85),
    )
    for name, mask, colour, opacity in groups:
        figure.add_trace(_lines(axes[mask], evaluations[mask], spans, name, colour, opacity))
    figure.update_xaxes(range=[-0.25, len(axes.columns) - 0.75], tickvals=list(range(len(axes.columns))))
    figure.update_xaxes(ticktext=list(axes.columns), gridcolor="rgba(128,138,150,0.45)", fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.16, 1.16], fixedrange=True)
    for i, (low, high) in enumerate(spans):
        for y, value in ((-0.09, low), (1.09, high)):
            figure.add_annotation(x=i, y=y, text=f"{value:.3g}", showarrow=False, font={"size": 11})
    return figure


def _aggregates(evaluations: pd.DataFrame, units: Units) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "latency (ms)": evaluations["latency_ms"],
            units.axis: units.factor * evaluations["accuracy"],
            "size (MB)": evaluations["size_bytes"] / 1e6,
            "MACs (% of given)": 100 * evaluations["macs_ratio"],
            "integer layers (%)": 100 * evaluations["integer_ratio"],
            "channels kept (%)": 100 * evaluations["kept_ratio"],
            "p99 / best latency": evaluations["p99_ms"] / evaluations["latency_ms"],
        }
    )


def _lines(
    axes: pd.DataFrame,
    rows: pd.DataFrame,
    spans: Sequence[tuple[float, float]],
    name: str,
    colour: str,
    opacity: float,
) -> go.Scatter:
    """Polylines with a gap after each; the gap belongs to its line, so that a filtered line leaves no bridge."""
    scaled = [
        [
            *(
                (value - low) / (high - low) if high > low else 0.5
                for value, (low, high) in zip(line, spans, strict=True)
            ),
            None,
        ]
        for line in axes.itertuples(index=False)
    ]
    width = len(spans) + 1
    trace = go.Scatter(
        x=[*range(len(spans)), None] * len(scaled),
        y=[value for line in scaled for value in line],
        text=[key for key in rows["key"] for _ in range(width)],
        mode="lines",
        name=name,
        opacity=opacity,
        line={"color": colour, "width": 1.75, "dash": "dot" if colour == style.NEUTRAL else "solid"},
        hovertemplate="%{text}<extra></extra>",
    )
    return linked(trace, [n for n in rows["number"] for _ in range(width)], ["x", "y", "text"])
