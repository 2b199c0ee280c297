"""The live dashboard: runs side by side, with the figures of the report, while they are searched. The only use of Dash.

Everything comes from this process: no request leaves the machine. A run is read without changing it. What may be
exported goes to a folder that whoever started the dashboard chose, never to one the page names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
    _connect(app, _Page(runs, export))
    return app


def _connect(app: dash.Dash, page: _Page) -> None:
    """Tell Dash what depends on what."""

    def part(name: str) -> dict[str, Any]:
        return {"part": name, "run": MATCH}

    tick, at = Input("tick", "n_intervals"), State(part("graph"), "id")
    filters = [Input(name, "value") for name in ("view", "latency", "accuracy", "size")]
    theme, chosen = State("shown-theme", "data"), Input(part("chosen"), "data")
    exports = Input({"part": "export", "run": MATCH, "number": ALL}, "n_clicks")
    outputs = [Output("shown-theme", "data"), Output("theme", "children")]
    app.clientside_callback(THEME, outputs, Input("theme", "n_clicks"), theme)  # type: ignore[no-untyped-call]
    app.callback(Output("place", "href"), tick, State({"part": "graph", "run": ALL}, "id"))(page.reload)
    outputs = [Output(part("graph"), name) for name in ("figure", "style")]
    outputs += [Output(part("words"), "children"), Output(part("drawn"), "data")]
    looks = [*filters, Input("shown-theme", "data"), chosen]
    known = {"_tick": tick, "looks": looks, "drawn": State(part("drawn"), "data"), "at": at}
    app.callback(outputs, inputs=known)(page.draw)
    clicks = [Input(part("graph"), "clickData"), State(part("graph"), "figure")]
    app.callback(Output(part("chosen"), "data"), *clicks, prevent_initial_call=True)(page.choose)
    app.callback(Output(part("detail"), "children"), chosen, at)(page.detail)
    told = Output(part("told"), "children")
    app.callback(told, exports, State(part("chosen"), "data"), at, prevent_initial_call=True)(page.export)


@dataclass(frozen=True, slots=True)
class _Page:
    """What the page asks of this process; `at` is the id of the graph on the card that asks."""

    runs: Board
    exporter: Exporter

    def watched(self, at: dict[str, Any]) -> Watched:
        return self.runs.runs()[int(at["run"])]

    def reload(self, _tick: int, shown: list[Any]) -> Any:
        """Where to go when there are other runs than those on the page."""
        return dash.no_update if len(shown) == len(self.runs.runs()) else "/"

    def draw(self, _tick: int, looks: list[Any], drawn: list[Any] | None, at: dict[str, Any]) -> Any:
        """Figure and words of a card and what they were made from, unless it is the same as before."""
        watched = self.watched(at)
        try:
            facts = watched.facts()
        except HwSearchError as error:
            return dash.no_update, dash.no_update, str(error), dash.no_update
        view, *limits, theme, chosen = looks
        wanted = [watched.version, *looks]
        if wanted == drawn:
            return (dash.no_update,) * 4
        figure = _figure(facts, view, _within(facts, *limits), chosen, theme or "light")
        said = board.words(facts, figure)
        return figure.update_layout(title=None), {"height": f"{figure.layout.height}px"}, said, wanted

    def choose(self, click: dict[str, Any] | None, figure: dict[str, Any]) -> Any:
        """The evaluation that was clicked."""
        number = None if click is None else clicked(click, figure)
        return dash.no_update if number is None else number

    def detail(self, number: int | None, at: dict[str, Any]) -> Any:
        """The chosen evaluation in words."""
        return board.detail(self.watched(at).facts(), number, at["run"])

    def export(self, clicks: list[int], number: int, at: dict[str, Any]) -> str:
        """What came of exporting it; nothing while the button has not been pressed."""
        return _exported(self.watched(at), number, self.exporter) if any(clicks) else ""


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
    if urlsplit(f"//{flask.request.host}").hostname not in LOOPBACK:
        flask.abort(403)
