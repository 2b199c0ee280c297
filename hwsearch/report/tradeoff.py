"""The main figure: accuracy against latency, with intervals, baselines, ties and the front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import style
from hwsearch.report.links import linked
from hwsearch.report.view import Units
from hwsearch.search.pareto import front_mask

ERRORS = ("error_x.array", "error_x.arrayminus", "error_y.array", "error_y.arrayminus")


def pareto(evaluations: pd.DataFrame, units: Units) -> go.Figure:
    """Every evaluation once, at its best-founded numbers; area of a marker is the size of the file.

    Filled markers were measured again at the end and scored on the report split; open or grey ones are what the search
    saw. Bars are 95 % intervals; a thick band joins points whose difference is within the noise.
    """
    frame = evaluations.assign(
        shown=units.factor * evaluations["accuracy"],
        hover=[_hover(row, units) for _, row in evaluations.iterrows()],
        area=_marker_sizes(evaluations["size_bytes"]),
    )
    final = bool(frame["final"].any())
    side = "Up" if units.higher_is_better else "Down"
    figure = style.figure(
        f"{units.label[0].upper()}{units.label[1:]} against latency",
        f"{side} and left is better. Bars are 95 % intervals, marker area is file size.",
        height=420,
    )
    searched = frame[frame["baseline"].isna()]
    groups = {name: searched[searched["status"] == name] for name in ("infeasible", "searched", "finalist", "front")}
    for trace in (
        _ties(frame),
        _points(groups["infeasible"], "outside the limits", {"color": style.SEARCHED, "symbol": "x-thin-open"}),
        _points(
            groups["searched"],
            "searched (search split)",
            {"color": style.SEARCHED, "opacity": 0.5, "line": {"width": 0}},
        ),
        _front_line(frame, units),
        _points(groups["finalist"], "finalist, not on the front", _teal(filled=False), units),
        _points(groups["front"], _front_name(final), _teal(filled=final), units),
        _baselines(frame, units),
    ):
        if len(trace.x):
            figure.add_trace(trace)
    figure.update_xaxes(title_text="latency of one call (ms)")
    figure.update_yaxes(title_text=units.axis)
    return _zoomed(figure, frame, units)


def ringed(figure: go.Figure, evaluations: pd.DataFrame, number: int, units: Units, colour: str) -> go.Figure:
    """`figure` with a ring around one evaluation."""
    rows = evaluations[evaluations["number"] == number]
    marker = {"symbol": "circle-open", "size": 27, "color": colour, "line": {"width": 1.75}}
    x, y = rows["latency_ms"].tolist(), (units.factor * rows["accuracy"]).tolist()
    return figure.add_scatter(x=x, y=y, mode="markers", marker=marker, hoverinfo="skip", showlegend=False)


def _front_name(final: bool) -> str:
    return "front (measured again, report split)" if final else "front so far (search split)"


def _teal(*, filled: bool) -> dict[str, Any]:
    return {
        "color": style.FRONT,
        "symbol": "circle" if filled else "circle-open",
        "line": {"width": 0 if filled else 2},
    }


def _marker_sizes(size_bytes: pd.Series) -> pd.Series:
    """Diameters whose squares are in proportion to the sizes, 22 px for the largest, at least 8 px."""
    return (22 * (size_bytes / max(1, size_bytes.max() if len(size_bytes) else 1)) ** 0.5).clip(lower=8)


def _points(rows: pd.DataFrame, name: str, marker: dict[str, Any], bars: Units | None = None) -> go.Scatter:
    """A trace of evaluations; with 95 % bars if `bars` gives the units of the metric."""
    trace = go.Scatter(
        x=rows["latency_ms"].tolist(),
        y=rows["shown"].tolist(),
        hovertext=rows["hover"].tolist(),
        hoverinfo="text",
        mode="markers",
        name=name,
        marker={"size": rows["area"].tolist(), "opacity": 1, **marker},
    )
    along = ["x", "y", "hovertext", "marker.size"]
    if bars is not None:
        trace.update(_error_bars(rows, bars))
        along += ERRORS
    return linked(trace, rows["number"].tolist(), along)


def _error_bars(rows: pd.DataFrame, units: Units) -> dict[str, Any]:
    look = {"thickness": 1, "width": 0, "color": "rgba(128,138,150,0.7)"}
    upper = units.factor * (rows["accuracy_high"] - rows["accuracy"]).astype(float).fillna(0.0)
    lower = units.factor * (rows["accuracy"] - rows["accuracy_low"]).astype(float).fillna(0.0)
    return {
        "error_x": {
            "array": (rows["latency_high"] - rows["latency_ms"]).tolist(),
            "arrayminus": (rows["latency_ms"] - rows["latency_low"]).tolist(),
            **look,
        },
        "error_y": {"array": upper.tolist(), "arrayminus": lower.tolist(), **look},
    }


def _baselines(frame: pd.DataFrame, units: Units) -> go.Scatter:
    rows = frame[frame["baseline"].notna()]
    trace = _points(rows, "uniform baseline", {"symbol": "diamond", "line": {"width": 1.5, "color": "#ffffff"}}, units)
    trace.marker.color = [style.format_colour(name) for name in rows["baseline"]]
    side = ["left" if row == rows["latency_ms"].max() else "right" for row in rows["latency_ms"]]  # within the chart
    trace.update(mode="markers+text", text=[f"<b>{name}</b>" for name in rows["baseline"]])
    trace.textposition = [f"bottom {name}" for name in side]
    return linked(trace, rows["number"].tolist(), [*trace.meta["along"], "marker.color", "text", "textposition"])


def _front_line(frame: pd.DataFrame, units: Units) -> go.Scatter:
    """The staircase along the front; a point tied with a better one is on the front but makes no step."""
    rows = frame[frame["on_front"].astype(bool)].sort_values("latency_ms")
    costs = rows["accuracy"] * (-1 if units.higher_is_better else 1)
    rows = rows[front_mask(np.column_stack([costs, rows["latency_ms"]]))] if len(rows) else rows
    trace = go.Scatter(
        x=rows["latency_ms"].tolist(),
        y=rows["shown"].tolist(),
        mode="lines",
        line={"color": style.FRONT, "width": 1.5, "shape": "hv"},
        opacity=0.8,
        hoverinfo="skip",
        showlegend=False,
    )
    return linked(trace, rows["number"].tolist(), ["x", "y"])


def _ties(frame: pd.DataFrame) -> go.Scatter:
    """A band between every two tied points, each pair once, gaps in between."""
    at = frame.set_index("key")
    pairs = sorted({tuple(sorted((r["key"], o))) for _, r in frame.iterrows() for o in r["tied_with"] if o in at.index})
    ends = [at.loc[key] if key else None for a, b in pairs for key in (a, b, None)]
    trace = go.Scatter(
        x=[None if end is None else float(end["latency_ms"]) for end in ends],
        y=[None if end is None else float(end["shown"]) for end in ends],
        mode="lines",
        line={"color": "rgba(18,154,140,0.22)", "width": 10},
        name="tied within the noise",
        hoverinfo="skip",
    )
    return linked(trace, [None if end is None else int(end["number"]) for end in ends], ["x", "y"])


def _hover(row: pd.Series, units: Units) -> str:
    """What a reader wants to know of one point, a line each."""
    name = f"uniform {row['baseline']}" if row["baseline"] else row["key"]
    accuracy = _interval(units.show(row["accuracy"]), row["accuracy_low"], row["accuracy_high"], units)
    lines = [
        f"<b>{name}</b>" + (f"  ({row['key']})" if row["baseline"] else ""),
        f"{row['latency_ms']:.3f} ms [{row['latency_low']:.3f}, {row['latency_high']:.3f}], {_origin(row)}",
        f"{accuracy} {units.label}, {row['split']} split",
        f"{row['size_bytes'] / 1e6:.3f} MB, {row['macs_ratio']:.0%} of the MACs",
        f"{row['precisions']}; {row['kept_ratio']:.0%} of channels kept",
    ]
    if row["energy_source"]:
        lines.append(f"{row['energy_mj']:.3g} mJ net of idle, {row['energy_source']}")
    if row["dropped"]:
        lines.append(f"dropped: {row['dropped']}")
    if row["training_minutes"]:
        lines.append(f"trained for {row['training_minutes']:.1f} min")
    if row["tied_with"]:
        lines.append(f"tied within the noise with {', '.join(row['tied_with'])}")
    if row["final"]:
        lines.append(f"the search saw {row['search_latency_ms']:.3f} ms, {units.show(row['search_accuracy'])}")
    lines += [f"over the limit: {name} by {amount:.3g}" for name, amount in row["violations"].items()]
    return "<br>".join(lines)


def _origin(row: pd.Series[Any]) -> str:
    return f"p99 {row['p99_ms']:.3f} ms" if row["source"] == "measured" else f"from the {row['source']}"


def _interval(value: str, low: float | None, high: float | None, units: Units) -> str:
    if low is None or pd.isna(low) or high is None:
        return value
    return f"{value} [{units.show(low).removesuffix(units.suffix)}, {units.show(high).removesuffix(units.suffix)}]"


def _zoomed(figure: go.Figure, frame: pd.DataFrame, units: Units) -> go.Figure:
    """Start at the finalists and baselines, and say how many evaluations lie outside; a double click shows all."""
    main = frame[frame["baseline"].notna() | frame["status"].isin(["front", "finalist"])]
    if main.empty:
        return figure
    x = _padded(main["latency_low"].min(), main["latency_high"].max())
    lows, highs = main["accuracy_low"].fillna(main["accuracy"]), main["accuracy_high"].fillna(main["accuracy"])
    y = _padded(units.factor * float(lows.min()), units.factor * float(highs.max()))
    inside = frame["latency_ms"].between(x[0], x[1]) & frame["shown"].between(y[0], y[1])
    outside = int((~inside).sum())
    figure.update_xaxes(range=x)
    figure.update_yaxes(range=y)
    if outside:
        figure.layout.title.subtitle.text += f" {outside} of {len(frame)} models lie outside: double-click to see all."
    return figure


def _padded(low: float, high: float) -> list[float]:
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - pad, high + pad]
