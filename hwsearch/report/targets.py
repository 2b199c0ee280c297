"""One page for a study on several targets: the table, all fronts in one figure, and each target's own chart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from hwsearch.report import figures, frames, style
from hwsearch.report.view import RunView, Units, units
from hwsearch.search.comparison import Row, remarks
from hwsearch.store import atomic_write

COLOURS = ("#3f6fb5", "#129a8c", "#d6456b", "#97739c", "#c98a1b", "#7b8794")
HEADERS = ("target", "model", "fp32", "latency", "of fp32", "accuracy", "lost", "size", "MACs gone", "ran in", "legal")

CONFIG = {"displaylogo": False, "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]]}

Result = tuple[RunView, Row]
"""A run and the model chosen of it."""


def write_targets(results: Sequence[Result], path: Path) -> Path:
    """Write the page to `path` and return it.

    Raises:
        ConfigError: the file cannot be written.
    """
    with atomic_write(path) as stream:
        stream.write(render(results).encode())
    return Path(path)


def render(results: Sequence[Result]) -> str:
    """The page as HTML, which asks the network for nothing."""
    shown = units(results[0][0])
    charts = [fronts(results, shown), *(_own_chart(run) for run, _ in results)]
    return Template(_asset("targets.html")).substitute(
        title=escape(f"{results[0][0].config.name} on {len(results)} targets, hwsearch"),
        style=_asset("report.css"),
        plotly=get_plotlyjs(),
        headers="".join(f"<th>{name}</th>" for name in HEADERS),
        rows="\n".join(_cells(row, shown) for _, row in results),
        notes="".join(f"<p class='hint'>{escape(text)}</p>" for text in remarks(row for _, row in results)),
        charts="\n".join(f'<section class="panel">{_embedded(chart)}</section>' for chart in charts),
    )


def fronts(results: Sequence[Result], shown: Units) -> go.Figure:
    """The front of every target, with a ring around the chosen model; latencies that nobody measured are dotted."""
    figure = style.figure(
        "All targets",
        "The front of each, latency as a multiple of fp32 on the same target. A ring marks the model of the table; "
        "dotted lines are computed, not measured.",
        420,
    )
    for colour, (run, row) in zip(COLOURS * len(results), results, strict=False):
        points = [p for p in run.front.points if p.on_front] if run.front else []
        measured = row.latency_source == "measured"
        figure.add_scatter(
            x=[p.latency.best_ms / row.original_ms for p in points],
            y=[shown.factor * p.accuracy.value for p in points],
            text=[f"{row.target} {p.key}: {p.latency.best_ms:.4f} ms" for p in points],
            mode="lines+markers",
            line={"color": colour, "dash": "solid" if measured else "dot", "width": 1.5, "shape": "hv"},
            name=row.target,
            legendgroup=row.target,
        )
        figure.add_scatter(
            x=[row.ratio],
            y=[shown.factor * row.accuracy],
            text=[f"{row.target} {row.key}: {row.latency_ms:.4f} ms"],
            mode="markers",
            marker={"symbol": "circle-open-dot", "size": 16, "color": colour, "line": {"width": 2.5}},
            name=row.target,
            showlegend=False,
            legendgroup=row.target,
        )
    figure.update_xaxes(title_text="latency (fp32 = 1)")
    figure.update_yaxes(title_text=shown.axis)
    return figure


def _own_chart(run: RunView) -> go.Figure:
    figure = figures.pareto(frames.evaluations(run), units(run))
    return figure.update_layout(title_text=f"{run.target.name} on {run.device.chip}")


def _embedded(figure: go.Figure) -> str:
    """The figure below its title, which the page sets as text."""
    title = figure.layout.title
    bare = style.themed(figure, "light").update_layout(title=None)
    html: str = bare.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)
    return f"<h2>{title.text}</h2><p class='sub'>{title.subtitle.text}</p>{html}"


def _cells(row: Row, shown: Units) -> str:
    legal = row.legality
    cells = (
        row.target,
        row.key,
        f"{row.original_ms:.4f} ms",
        f"{row.latency_ms:.4f} ms ({row.latency_source})",
        f"{row.ratio:.3f}",
        shown.show(row.accuracy),
        f"{row.drop_points:+.2f}",
        f"{row.size_bytes / 1e6:.3f} MB",
        f"{row.sparsity:.1%}",
        ", ".join(f"{count} × {name}" for name, count in legal.executed.items()),
        "no" if legal.problems else "yes" if legal.complete else "as far as read back",
    )
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _asset(name: str) -> str:
    return resources.files("hwsearch.report").joinpath("assets", name).read_text(encoding="utf-8")
