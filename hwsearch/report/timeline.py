"""A stream as a timeline: how far features have moved, when that was noticed, what updates did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from hwsearch.adapt.follow import Event
from hwsearch.report import style
from hwsearch.store import atomic_write

RECENT = 5
"""Windows over which accuracy is averaged for the line."""


def timeline(events: Sequence[Event]) -> go.Figure:
    """Divergence of each window above, accuracy below; detections and updates as lines across both."""
    figure = style.figure("Following the scene", "Divergence of the features in each window, and accuracy.", height=460)
    windows = [event.window for event in events]
    figure.add_scatter(
        x=windows, y=[event.score for event in events], mode="lines+markers", name="divergence, nats", yaxis="y2",
        line={"color": style.SEARCHED, "width": 1.5}, marker={"size": 4},
        hovertemplate="window %{x}: %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=windows, y=[event.accuracy for event in events], mode="markers", name="accuracy",
        marker={"color": style.QUIET, "size": 6}, hovertemplate="window %{x}: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=windows, y=_running([event.accuracy for event in events]), mode="lines", name=f"mean of {RECENT}",
        line={"color": style.FRONT, "width": 2}, hoverinfo="skip",
    )  # fmt: skip
    for name, colour, symbol, chosen in (
        ("drift noticed", style.ALERT, "triangle-down", [event for event in events if event.drift]),
        ("update accepted", style.FRONT, "star", [event for event in events if event.update == "accepted"]),
        ("update undone", style.NEUTRAL, "x", [event for event in events if event.update == "rolled back"]),
    ):
        _mark(figure, name, colour, symbol, chosen)
    figure.update_xaxes(title_text="window", anchor="y")
    figure.update_layout(
        yaxis={"domain": [0, 0.52], "tickformat": ".0%", "title": {"text": "accuracy"}, "range": [0, 1.02]},
        yaxis2={"domain": [0.58, 1], "title": {"text": "divergence, nats"}, "rangemode": "tozero", "anchor": "x"},
    )
    return figure


def write_timeline(events: Sequence[Event], path: Path) -> None:
    """The timeline as one self-contained HTML file."""
    with atomic_write(path, "w") as stream:
        stream.write(timeline(events).to_html(include_plotlyjs=True))


def _mark(figure: go.Figure, name: str, colour: str, symbol: str, events: Sequence[Event]) -> None:
    figure.add_scatter(
        x=[event.window for event in events], y=[event.score for event in events], mode="markers", name=name,
        yaxis="y2", text=[event.reason for event in events], marker={"color": colour, "symbol": symbol, "size": 11},
        hovertemplate=f"window %{{x}}: {name}<br>%{{text}}<extra></extra>",
    )  # fmt: skip
    for event in events:
        figure.add_vline(x=event.window, line={"color": colour, "width": 1, "dash": "dot"}, opacity=0.5)


def _running(values: Sequence[float]) -> list[float]:
    parts = [values[max(0, i + 1 - RECENT) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
