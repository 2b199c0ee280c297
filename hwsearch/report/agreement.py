"""What the search saw against what was measured again in the end: how far its latencies could be trusted."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import style
from hwsearch.report.links import linked

SYMBOLS = {"measured": "circle", "table": "square", "modelled": "diamond"}
AXES = {"x": "latency", "y": "search_latency"}


def agreement(evaluations: pd.DataFrame) -> go.Figure:
    """Latency of every finalist and baseline as the search had it (measured, or from a table) and as measured again.

    Bars are 95 % intervals; on the diagonal both agree. Without points before finalists were measured again.
    """
    rows = evaluations[evaluations["final"].astype(bool)]
    figure = style.figure(
        "Could the search trust its latencies?",
        "Finalists: what the search went by, against the measurement at the end. Bars are 95 % intervals.",
        height=340,
    )
    if len(rows):
        both = rows[["latency_ms", "search_latency_ms"]]
        ends = [float(both.min().min()), float(both.max().max())]
        line = {"color": style.NEUTRAL, "dash": "dot", "width": 1.5}
        figure.add_scatter(x=ends, y=ends, mode="lines", name="both agree", hoverinfo="skip", line=line)
    for source, group in rows.groupby("search_source"):
        figure.add_trace(_points(group, str(source)))
    figure.update_xaxes(title_text="measured again (ms)")
    figure.update_yaxes(title_text="as the search saw it (ms)")
    return figure


def _points(rows: pd.DataFrame, source: str) -> go.Scatter:
    name = "measured in the search" if source == "measured" else f"from the {source}"
    trace = go.Scatter(
        x=rows["latency_ms"].tolist(),
        y=rows["search_latency_ms"].tolist(),
        text=[base or key for base, key in zip(rows["baseline"], rows["key"], strict=True)],
        mode="markers",
        name=name,
        marker={"color": style.FRONT, "size": 8, "symbol": SYMBOLS.get(source, "circle")},
        hovertemplate=f"<b>%{{text}}</b><br>%{{y:.4f}} ms, {name}<br>%{{x:.4f}} ms, measured again<extra></extra>",
    )
    along = ["x", "y", "text"]
    for axis, column in AXES.items():
        value = rows[f"{column}_ms"]
        trace[f"error_{axis}"] = {
            "array": (rows[f"{column}_high"] - value).tolist(),
            "arrayminus": (value - rows[f"{column}_low"]).tolist(),
            "thickness": 1,
            "width": 0,
        }
        along += [f"error_{axis}.array", f"error_{axis}.arrayminus"]
    return linked(trace, rows["number"].tolist(), along)
