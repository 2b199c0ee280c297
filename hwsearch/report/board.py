"""What the dashboard's page is made of: controls above, one card per run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from dash import dcc, html

from hwsearch.report.views import VIEWS, Facts
from hwsearch.report.watch import Watched
from hwsearch.types import Failure

CONFIG: Any = {"displaylogo": False, "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]]}


def layout(runs: Sequence[Watched], refresh_s: float) -> html.Div:
    """The whole page."""
    units = runs[0].facts().units
    side = "at least" if units.higher_is_better else "at most"
    limits = [
        _number("latency", "Latency at most (ms)"),
        _number("accuracy", f"{units.axis.partition(',')[0]} {side}"),
        _number("size", "Size at most (MB)"),
    ]
    return html.Div(
        [
            html.H1("Searches", className="sr"),
            dcc.Location(id="place", refresh=True),
            dcc.Interval(id="tick", interval=round(1000 * refresh_s)),
            dcc.Store(id="shown-theme", storage_type="local"),
            html.Div([_views(), *limits, html.Button("Dark", id="theme", className="quiet")], className="filters"),
            html.Main([_card(run.facts(), at) for at, run in enumerate(runs)], className="cards"),
        ]
    )


def _views() -> html.Fieldset:
    options = [{"label": view.title, "value": name} for name, view in VIEWS.items()]
    picker = dcc.RadioItems(options, "pareto", id="view", className="views", persistence=True)
    return html.Fieldset([html.Legend("View", className="sr"), picker])


def _number(name: str, label: str) -> html.Label:
    field = dcc.Input(id=name, type="number", min=0, placeholder="any", debounce=0.4, className="limit")
    return html.Label([label, field], className="limit-label")


def _card(facts: Facts, at: int) -> html.Section:
    """One run: its verdict in words, the chosen view, the chosen point."""

    def part(name: str) -> dict[str, Any]:
        return {"part": name, "run": at}

    run = facts.run
    named: dict[str, Any] = {"aria-label": f"{run.config.name} on {run.target.name}"}
    return html.Section(
        [
            html.P(f"{run.config.name} · {run.target.name} · {run.device.chip}", className="eyebrow"),
            html.Div(id=part("words")),
            dcc.Graph(id=part("graph"), config=CONFIG, responsive=True),
            html.Div(id=part("detail"), role="status"),
            html.P(id=part("told"), role="status", className="told"),
            html.P(html.A("Full report", href=f"/report/{at}", target="_blank"), className="hint"),
            dcc.Store(id=part("drawn")),
            dcc.Store(id=part("chosen")),
        ],
        className="panel card",
        **named,
    )


def words(facts: Facts, figure: go.Figure) -> list[Any]:
    """How far the search is, what it would ship now, and what the figure below shows."""
    run = facts.run
    failed = sum(isinstance(trial.outcome, Failure) for trial in run.trials)
    final = run.front is not None and run.front.final
    asked = max(len(run.trials), run.config.search.evaluations)
    count = f"{len(run.trials)} of {asked} evaluations" + (f", {failed} failed" if failed else "")
    last = next((trial.finished_at for trial in reversed(run.trials) if trial.finished_at), "")
    state = "finalists measured together" if final else f"last one at {last[11:19]} UTC" if last else ""
    title = figure.layout.title
    return [
        html.H2(facts.verdict.headline),
        html.P("; ".join(filter(None, [count, state])), className="sub"),
        html.H3(title.text),
        html.P(title.subtitle.text, className="sub"),
    ]


def detail(facts: Facts, number: int | None, at: int) -> list[Any]:
    """The chosen evaluation: its numbers, the command that exports it, and a button that does."""
    rows = facts.evaluations
    rows = rows[rows["number"] == number]
    if rows.empty:
        return [html.P("Click a point to see and export it.", className="hint")]
    row = rows.iloc[0]
    facts_of = {
        "Model": f"uniform {row['baseline']} ({row['key']})" if row["baseline"] else row["key"],
        "Latency": f"{row['latency_ms']:.3f} ms [{row['latency_low']:.3f}, {row['latency_high']:.3f}]",
        facts.units.label: f"{facts.units.show(row['accuracy'])}, {row['split']} split",
        "Size": f"{row['size_bytes'] / 1e6:.3f} MB",
        "Formats": row["precisions"],
        "Channels kept": f"{row['kept_ratio']:.0%}",
        "Dropped": row["dropped"] or "none",
    }
    button = html.Button("Export", id={"part": "export", "run": at, "number": number}, n_clicks=0)
    command = f"hwsearch export {shlex.quote(str(facts.run.path))} --key {row['key']} --out out/{row['key']}"
    return [
        html.Dl([html.Div([html.Dt(name), html.Dd(text)]) for name, text in facts_of.items()]),
        html.P([button, " ", html.Code(command)], className="command"),
    ]


def recommended(facts: Facts) -> int | None:
    """Number of the evaluation the verdict names, else of the fastest; None before the first success."""
    rows = facts.evaluations
    named = rows[rows["key"] == facts.verdict.key]
    found: pd.DataFrame = named if len(named) else rows.nsmallest(1, "latency_ms")
    return None if found.empty else int(found["number"].iloc[0])
