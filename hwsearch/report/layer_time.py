"""Where the time goes inside one model, and whether the runtime did what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import style
from hwsearch.report.layer_frames import UNATTRIBUTED
from hwsearch.report.links import linked

HEIGHTS = {"requested": 2, "executed": 1}


def layer_latency(layers: pd.DataFrame) -> go.Figure:
    """Share of profiled time per layer, coloured by the format that really ran, over what was requested.

    Holds every evaluation; a page shows the rows of one. Time no layer owns stands in a column of its own. Rows of the
    same words make one trace, of small numbers only: they are most of what a report holds.
    """
    figure = style.figure(
        "Time by layer, requested and executed format",
        "Share of profiled time. Profilers slow small models: compare columns of one model, not models.",
        height=440,
    )
    names = layers["layer"].drop_duplicates().tolist()
    position = {name: i for i, name in enumerate(names)}
    placed = layers.assign(x=layers["layer"].map(position))
    gone = placed["dropped"].astype(bool)
    alive = placed[~gone]
    own, glue = alive[alive["layer"] != UNATTRIBUTED], alive[alive["layer"] == UNATTRIBUTED]
    pairs, size = _pairs(own), max(4, min(13, 640 // max(1, len(names))))
    for requested, executed, rows in pairs:
        figure.add_traces([_bars(timed, requested, executed, kinds) for kinds, timed in _by_kinds(rows)])
        figure.add_traces([_squares(rows, requested, executed, strip, size) for strip in HEIGHTS])
    figure.add_trace(_unattributed(glue))
    figure.add_trace(_dropped(placed[gone]))
    style.add_key(figure, {executed or "not reported": style.format_colour(executed) for _, executed, _ in pairs})
    _key_of_mismatches(figure, own)
    _lay_out(figure, names)
    return figure


def _lay_out(figure: go.Figure, names: list[str]) -> None:
    """Time above, the two strips below, one column per name; narrow columns get small upright labels."""
    figure.update_layout(barmode="stack", bargap=0.18, legend_traceorder="normal", yaxis2=_strips_axis())
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        anchor="y2",
        range=[-0.6, len(names) - 0.4],
        showgrid=False,
    )
    style.label_columns(figure, names)
    figure.layout.yaxis.update(tickformat=".1~%", domain=[0.2, 1], rangemode="tozero", fixedrange=True)
    figure.layout.yaxis.title.text = "share of profiled time"


def _pairs(own: pd.DataFrame) -> list[tuple[str, str | None, pd.DataFrame]]:
    """Rows by (requested, executed), widest executed format first, what is not reported last."""
    ran = own["executed"].fillna("")
    order = [*style.formats_in_order(set(ran) - {""}), ""]
    pairs = sorted(set(zip(own["requested"], ran, strict=True)), key=lambda pair: (order.index(pair[1]), pair[0]))
    return [(asked, done or None, own[(own["requested"] == asked) & (ran == done)]) for asked, done in pairs]


def _by_kinds(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Timed rows by the runtime's own names for what it did."""
    for kinds, group in rows[rows["share"].notna()].groupby("kinds"):
        yield str(kinds), group


def _numbers(rows: pd.DataFrame, column: str) -> np.ndarray[Any, Any]:
    """A column in as few bytes as it needs: whole numbers as they are, others to seven digits."""
    values = rows[column].to_numpy()
    whole = column in ("x", "number")
    return values.astype(np.min_scalar_type(int(values.max(initial=0))) if whole else np.float32)


def _bars(rows: pd.DataFrame, requested: str, executed: str | None, kinds: str) -> go.Bar:
    wrong = executed is not None and executed != requested
    trace = go.Bar(
        x=_numbers(rows, "x"),
        y=_numbers(rows, "share"),
        showlegend=False,
        marker={"color": style.format_colour(executed), "line": {"width": 2 if wrong else 0, "color": style.ALERT}},
        customdata=_numbers(rows, "ms"),
        hovertemplate="<b>%{x}</b>: %{y:.1%} of the profile, %{customdata:.4f} ms<br>"
        f"requested {requested}, executed {executed or 'not reported'}<br>{kinds}<extra></extra>",
    )
    return linked(trace, _numbers(rows, "number"), ["x", "y", "customdata"])


def _unattributed(rows: pd.DataFrame) -> go.Bar:
    timed = rows[rows["share"].notna()]
    trace = go.Bar(
        x=_numbers(timed, "x"),
        y=_numbers(timed, "share"),
        name="belongs to no layer",
        marker={"color": "rgba(0,0,0,0)", "line": {"width": 1.5, "color": style.NEUTRAL}, "pattern": _hatching()},
        customdata=timed[["ms", "kinds"]].to_numpy().tolist(),
        hovertemplate="<b>belongs to no layer</b>: %{y:.1%} of the profile, %{customdata[0]:.4f} ms<br>"
        "%{customdata[1]}<extra></extra>",
    )
    return linked(trace, timed["number"].tolist(), ["x", "y", "customdata"])


def _dropped(rows: pd.DataFrame) -> go.Scatter:
    trace = go.Scatter(
        x=_numbers(rows, "x"),
        y=np.full(len(rows), 1.5, np.float32),
        yaxis="y2",
        mode="markers",
        marker={"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": style.SEARCHED}},
        hovertemplate="%{x}: branch dropped<extra></extra>",
        showlegend=False,
    )
    return linked(trace, _numbers(rows, "number"), ["x", "y"])


def _hatching() -> dict[str, Any]:
    return {"shape": "/", "fgcolor": style.NEUTRAL, "size": 6, "solidity": 0.2}


def _squares(rows: pd.DataFrame, requested: str, executed: str | None, strip: str, size: int) -> go.Scatter:
    """The strip under the bars that says what was requested, or what was executed, of each layer."""
    name = requested if strip == "requested" else executed
    wrong = strip == "executed" and executed is not None and executed != requested
    trace = go.Scatter(
        x=_numbers(rows, "x"),
        y=np.full(len(rows), HEIGHTS[strip], np.int8),
        yaxis="y2",
        mode="markers",
        marker={
            "symbol": "square" if name else "square-open",
            "size": size,
            "color": style.format_colour(name),
            "line": {"width": 2.5 if wrong else 1, "color": style.ALERT if wrong else style.format_colour(name)},
        },
        hovertemplate=f"%{{x}}: {strip} {name or 'not reported'}<extra></extra>",
        showlegend=False,
    )
    return linked(trace, _numbers(rows, "number"), ["x", "y"])


def _key_of_mismatches(figure: go.Figure, own: pd.DataFrame) -> None:
    if not own["matched"].isin([False]).any():
        return
    marker = {"symbol": "square-open", "size": 12, "line": {"width": 2.5}, "color": style.ALERT}
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name="not what was requested", marker=marker))


def _strips_axis() -> dict[str, Any]:
    return {
        "domain": [0, 0.15],
        "range": [0.4, 2.6],
        "tickvals": list(HEIGHTS.values()),
        "ticktext": list(HEIGHTS),
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
    }
