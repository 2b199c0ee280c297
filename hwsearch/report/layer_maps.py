"""Heat maps of what the finalists chose: one column per layer in network order, one row per model."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import style
from hwsearch.report.layer_frames import UNATTRIBUTED
from hwsearch.report.links import linked
from hwsearch.report.view import Units
from hwsearch.types import SourceModel

ROW_PX, MACS_PX = 26, 70
MAX_LABELLED = 32
"""Cells are wide enough for a number up to this many layers."""


def layer_formats(layers: pd.DataFrame, evaluations: pd.DataFrame, source: SourceModel, units: Units) -> go.Figure:
    """Requested number format per layer (columns, network order) and finalist (rows, fastest on top)."""
    rows = _labelled_rows(evaluations, units)
    cells = _cells(layers, rows)
    names = style.formats_in_order(set(cells["requested"].dropna()))
    levels = {name: level for level, name in enumerate(names)}
    figure = heat_map_frame(
        "Number format per layer",
        "What each finalist asks of every layer, fastest on top. Top: where the work is.",
        source,
        rows,
    )
    z = _matrix(cells.assign(level=cells["requested"].map(levels).astype(float)), "level", rows)
    colours = [style.format_colour(name) for name in names]
    figure.add_trace(
        linked(
            go.Heatmap(
                z=z.to_numpy().tolist(),
                x=z.columns.tolist(),
                y=rows["label"].tolist(),
                customdata=_matrix(cells.fillna({"requested": "dropped"}), "requested", rows).to_numpy().tolist(),
                colorscale=_steps(colours),
                zmin=-0.5,
                zmax=max(0.5, len(names) - 0.5),
                showscale=False,
                xgap=1.5,
                ygap=1.5,
                hovertemplate="%{x}: %{customdata}<br>%{y}<extra></extra>",
            ),
            rows["number"].tolist(),
            ["z", "y", "customdata"],
        )
    )
    style.add_key(figure, dict(zip(names, colours, strict=True)))
    return _with_dropped(figure, cells, rows)


def layer_channels(layers: pd.DataFrame, evaluations: pd.DataFrame, source: SourceModel, units: Units) -> go.Figure:
    """Share of output channels kept per layer and finalist; the number is how many are left."""
    rows = _labelled_rows(evaluations, units)
    cells = _cells(layers, rows)
    cells = cells.assign(ratio=(cells["kept"] / cells["channels"]).where(~cells["dropped"].astype(bool)).astype(float))
    figure = heat_map_frame(
        "Channels kept per layer",
        "Output channels each finalist keeps, fastest on top; numbers are channels left. Top: where the work is.",
        source,
        rows,
    )
    ratio = _matrix(cells, "ratio", rows)
    figure.add_trace(
        linked(
            go.Heatmap(
                z=ratio.to_numpy().tolist(),
                x=ratio.columns.tolist(),
                y=rows["label"].tolist(),
                text=_matrix(cells, "kept", rows).to_numpy().tolist(),
                customdata=_matrix(cells, "channels", rows).to_numpy().tolist(),
                texttemplate="%{text}" if ratio.shape[1] <= MAX_LABELLED else None,
                textfont={"size": 10.5},
                colorscale=style.KEPT_SCALE,
                zmin=0,
                zmax=1,
                xgap=1.5,
                ygap=1.5,
                colorbar={
                    "title": {"text": "kept", "side": "top", "font": {"size": 12.5}},
                    "tickformat": ".0%",
                    "thickness": 10,
                    "len": 0.6,
                },
                hovertemplate="%{x}: %{text} of %{customdata} channels<br>%{y}<extra></extra>",
            ),
            rows["number"].tolist(),
            ["z", "y", "text", "customdata"],
        )
    )
    return _with_dropped(figure, cells, rows)


# --------------------------------------------------------------------------- heat maps


def map_rows(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The evaluations a heat map shows, in the order of its rows: searched finalists and the front, fastest first."""
    chosen = (evaluations["on_front"] | evaluations["final"]).astype(bool) & evaluations["baseline"].isna()
    return evaluations[chosen].sort_values("latency_ms")


def _labelled_rows(evaluations: pd.DataFrame, units: Units) -> pd.DataFrame:
    """The searched finalists (the front, if none were measured again), fastest first, each with a label of its own."""
    rows = map_rows(evaluations)
    labels = [
        f"{row['key'][:6]}  {row['latency_ms']:.3f} ms  {units.show(row['accuracy'])}" for _, row in rows.iterrows()
    ]
    return rows.assign(label=labels)


def _cells(layers: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    return layers[(layers["layer"] != UNATTRIBUTED) & layers["number"].isin(rows["number"])]


def _matrix(cells: pd.DataFrame, column: str, rows: pd.DataFrame) -> pd.DataFrame:
    """`column` as candidates x layers, in the order of `rows` and of the network."""
    order = cells["layer"].drop_duplicates()
    return cells.pivot(index="number", columns="layer", values=column).reindex(index=rows["number"], columns=order)


def heat_map_frame(title: str, subtitle: str, source: SourceModel, rows: pd.DataFrame) -> go.Figure:
    """A heat map's frame: a column per layer, MACs on top, and a row of constant height per `label` of `rows`."""
    body = max(1, len(rows)) * ROW_PX
    figure = style.figure(title, subtitle, height=ROW_PX)
    names = [layer.name for layer in source.layers]
    total = max(1, sum(layer.macs for layer in source.layers))
    figure.add_trace(
        go.Bar(
            x=names,
            y=[layer.macs / total for layer in source.layers],
            yaxis="y2",
            marker={"color": style.SEARCHED, "opacity": 0.8},
            hovertemplate="%{x}: %{y:.1%} of the MACs<extra></extra>",
            showlegend=False,
        )
    )
    share = body / (body + MACS_PX)
    figure.update_xaxes(categoryorder="array", categoryarray=names, tickvals=names, showgrid=False)
    style.label_columns(figure, names)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=rows["label"].tolist(),
        range=[max(1, len(rows)) - 0.5, -0.5],
        domain=[0, share],
        showgrid=False,
        tickfont={"family": "ui-monospace, 'Liberation Mono', monospace", "size": 11.5},
        fixedrange=True,
    )
    figure.update_layout(
        yaxis2={
            "domain": [min(0.97, share + 0.03), 1],
            "tickformat": ".0%",
            "title": {"text": "MACs", "font": {"size": 12.5}},
            "showgrid": False,
            "zeroline": False,
            "nticks": 3,
            "fixedrange": True,
            "automargin": True,
        },
        bargap=0.12,
        margin_r=30,
        height=body + MACS_PX + figure.layout.margin.t + figure.layout.margin.b,
    )
    return figure


def _steps(colours: list[str]) -> list[list[float | str]]:
    """A colour scale of equal flat steps."""
    n = max(1, len(colours))
    return [[edge, colour] for i, colour in enumerate(colours or [style.QUIET]) for edge in (i / n, (i + 1) / n)]


def _with_dropped(figure: go.Figure, cells: pd.DataFrame, rows: pd.DataFrame) -> go.Figure:
    """Cross out the layers of dropped branches."""
    gone = _matrix(cells, "dropped", rows).astype(bool)
    if not gone.to_numpy().any():
        return figure
    figure.add_trace(
        linked(
            go.Heatmap(
                z=[[0.0 if cell else None for cell in line] for line in gone.to_numpy()],
                x=gone.columns.tolist(),
                y=rows["label"].tolist(),
                text=[["×" if cell else "" for cell in line] for line in gone.to_numpy()],
                texttemplate="%{text}",
                textfont={"color": style.NEUTRAL},
                colorscale=[[0, style.QUIET], [1, style.QUIET]],
                showscale=False,
                xgap=1.5,
                ygap=1.5,
                hoverongaps=False,
                hovertemplate="%{x}: branch dropped<br>%{y}<extra></extra>",
            ),
            rows["number"].tolist(),
            ["z", "y", "text"],
        )
    )
    style.add_key(figure, {"branch dropped ×": style.QUIET})
    return figure
