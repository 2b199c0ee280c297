"""The live dashboard: runs side by side, with the figures of the report, while they are searched. The only use of Dash.

Everything comes from this process: no request leaves the machine. A run is read without changing it. What may be
exported goes to a folder that whoever started the dashboard chose, never to one the page names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dash
import flask
import pandas as pd
import plotly.graph_objects as go
from dash import ALL, MATCH, Input, Output, State

from hwsearch.errors import HwSearchError
from hwsearch.report import board, style
from hwsearch.report.html import asset, render
from hwsearch.report.links import filtered
from hwsearch.report.tradeoff import ringed
from hwsearch.report.views import VIEWS, Facts
from hwsearch.report.watch import Board, Watched
from hwsearch.search.run import Run

Exporter = Callable[[Run, str], Path]
"""Exports the candidate with a key and says where it went."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

PAGE = """<!doctype html>
<html lang="en"><head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}<style>STYLE</style></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body></html>"""

THEME = """(clicks, theme) => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  let name = theme ?? (dark ? "dark" : "light");
  if (clicks && dash_clientside.callback_context.triggered_id === "theme") name = name === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = name;
  return [name, name === "dark" ? "Light" : "Dark"];
}"""


def make_app(runs: Board, export: Exporter, *, refresh_s: float, loopback: bool = True) -> dash.Dash:
    """The dashboard of `runs`, as an application that can be served.

    Args:
        runs: What to show.
        export: Called when a point is exported.
        refresh_s: Seconds between two looks at the runs.
        loopback: Answer only requests addressed to this machine, which keeps out pages that pretend to be it.
    """
    app = dash.Dash(__name__, title="hwsearch", update_title="", serve_locally=True, assets_folder="no-assets")
    app.index_string = PAGE.replace("STYLE", asset("report.css") + asset("dashboard.css"))
    app.enable_dev_tools(debug=False, dev_tools_disable_version_check=True)
    app.layout = lambda: board.layout(runs.runs(), refresh_s)
    if loopback:
        app.server.before_request(_only_from_here)
    app.server.add_url_rule("/report/<int:at>", "report", lambda at: _report(runs, at))
    _connect(app, runs, export)
    return app


def _connect(app: dash.Dash, runs: Board, export: Exporter) -> None:
    """Tell Dash what depends on what."""
    card = {name: {"part": name, "run": MATCH} for name in ("state", "words", "graph", "drawn", "chosen", "detail")}
    filters = [Input(name, "value") for name in ("view", "latency", "accuracy", "size")]
    app.clientside_callback(THEME, Output("shown-theme", "data"), Output("theme", "children"),
                            Input("theme", "n_clicks"), State("shown-theme", "data"))  # fmt: skip
    app.callback(Output("place", "href"), Input("tick", "n_intervals"), State({"part": "graph", "run": ALL}, "id"))(
        lambda _, shown: "/" if len(shown) != len(runs.runs()) else dash.no_update
    )

    @app.callback(
        Output(card["graph"], "figure"),
        Output(card["words"], "children"),
        Output(card["drawn"], "data"),
        Input("tick", "n_intervals"),
        *filters,
        Input("shown-theme", "data"),
        Input(card["chosen"], "data"),
        State(card["drawn"], "data"),
        State(card["graph"], "id"),
    )
    def draw(
        _tick: int, view: str, latency: float | None, accuracy: float | None, size: float | None, theme: str | None,
        chosen: int | None, drawn: list[Any] | None, at: dict[str, Any],
    ) -> Any:  # fmt: skip
        watched = runs.runs()[at["run"]]
        facts = watched.facts()
        wanted = [watched.version, view, latency, accuracy, size, theme, chosen]
        if wanted == drawn:
            return dash.no_update, dash.no_update, dash.no_update
        keep = _within(facts, latency, accuracy, size)
        figure = _figure(facts, view, keep, chosen, theme or "light")
        said = board.words(facts, figure)
        return figure.update_layout(title=None), said, wanted

    @app.callback(
        Output(card["chosen"], "data"),
        Input(card["graph"], "clickData"),
        State(card["graph"], "figure"),
        prevent_initial_call=True,
    )
    def choose(click: dict[str, Any] | None, figure: dict[str, Any]) -> Any:
        number = None if click is None else clicked(click, figure)
        return dash.no_update if number is None else number

    @app.callback(
        Output(card["detail"], "children"),
        Input(card["chosen"], "data"),
        Input({"part": "export", "run": MATCH, "number": ALL}, "n_clicks"),
        State(card["graph"], "id"),
    )
    def detail(number: int | None, clicks: list[int | None], at: dict[str, Any]) -> Any:
        watched = runs.runs()[at["run"]]
        told = _exported(watched, number, export) if number is not None and any(clicks) else None
        return board.detail(watched.facts(), number, at["run"], told)


def _figure(facts: Facts, view: str, keep: Callable[[int], bool], chosen: int | None, theme: str) -> go.Figure:
    """A view of a run as the dashboard shows it: filtered, in the colours of the page, with the chosen point ringed."""
    figure = VIEWS[view].draw(facts)
    if figure is None:
        empty = style.figure(VIEWS[view].title, "This run has nothing to draw here yet.", height=240)
        return empty.update_layout(xaxis_visible=False, yaxis_visible=False)
    if view == "layer_latency":
        shown = chosen if chosen is not None else board.recommended(facts)
        keep = lambda number: number == shown  # noqa: E731 - replaces the argument
    figure = filtered(figure, keep)
    if view == "pareto" and chosen is not None:
        figure = ringed(figure, facts.evaluations, chosen, facts.units, style.THEMES[theme]["ink"])
    return style.themed(figure, theme).update_layout(uirevision=view)


def _within(facts: Facts, latency: float | None, accuracy: float | None, size: float | None) -> Callable[[int], bool]:
    """Whether an evaluation meets limits in ms, in the metric as shown, and in MB; a failure only meets no limit."""
    table, units = facts.evaluations, facts.units
    passing = pd.Series(data=True, index=table.index)
    if latency is not None:
        passing &= table["latency_ms"] <= latency
    if accuracy is not None:
        worse = table["accuracy"] * units.factor - accuracy
        passing &= worse >= 0 if units.higher_is_better else worse <= 0
    if size is not None:
        passing &= table["size_bytes"] <= 1e6 * size
    if passing.all():
        return lambda _number: True
    numbers = set(table.loc[passing, "number"])
    return lambda number: number in numbers


def clicked(click: dict[str, Any], figure: dict[str, Any]) -> int | None:
    """The evaluation a click fell on; None if it fell on something that is no evaluation."""
    for point in click["points"]:
        trace = figure["data"][point["curveNumber"]]
        rows = (trace.get("meta") or {}).get("rows", [])
        at = (
            trace["y"].index(point["y"])
            if trace["type"] == "heatmap"
            else point.get("pointNumber", point["pointIndex"])
        )
        if at < len(rows) and rows[at] is not None:
            return int(rows[at])
    return None


def _exported(watched: Watched, number: int, export: Exporter) -> str:
    """Export an evaluation; what to tell about it."""
    run = watched.facts().run
    trial = next(trial for trial in run.trials if trial.number == number)
    assert isinstance(run, Run)
    try:
        path = export(run, trial.candidate.key)
    except HwSearchError as error:
        return str(error)
    return f"exported to {path}; check it with: hwsearch verify {path}"


def _report(runs: Board, at: int) -> str:
    found = runs.runs()
    return render(found[at].facts().run) if at < len(found) else flask.abort(404)


def _only_from_here() -> None:
    if flask.request.host.rpartition(":")[0].strip("[]") not in LOOPBACK:
        flask.abort(403)
