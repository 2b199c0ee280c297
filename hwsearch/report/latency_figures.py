"""Predicted against measured latency of a table's check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from hwsearch.latency.validate import Point
from hwsearch.store import atomic_write

TOLERANCE = 0.1


def scatter(points: Sequence[Point]) -> go.Figure:
    """Every model as a point with its standard error; the diagonal, and 10 % around it."""
    longest = max(max(point.measured_ms, point.predicted_ms) for point in points)
    figure = go.Figure()
    for factor, dash in ((1.0, "solid"), (1 + TOLERANCE, "dot"), (1 - TOLERANCE, "dot")):
        figure.add_scatter(
            x=[0, longest], y=[0, factor * longest], mode="lines", line={"color": "#888", "dash": dash, "width": 1},
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    figure.add_scatter(
        x=[point.measured_ms for point in points],
        y=[point.predicted_ms for point in points],
        error_y={"type": "data", "array": [point.sigma_ms for point in points], "thickness": 1},
        text=[point.candidate.key for point in points],
        mode="markers",
        name="whole models",
    )
    figure.update_layout(xaxis_title="measured, ms", yaxis_title="predicted, ms", showlegend=False)
    return figure


def write_scatter(points: Sequence[Point], path: Path) -> None:
    """The scatter as one self-contained HTML file."""
    with atomic_write(path, "w") as stream:
        stream.write(scatter(points).to_html(include_plotlyjs=True))
