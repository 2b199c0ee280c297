"""Which blocks of the network decide accuracy and latency: facts as a frame, and their figure."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import style
from hwsearch.report.layer_frames import UNATTRIBUTED
from hwsearch.report.view import Units
from hwsearch.search.importance import importances
from hwsearch.types import PRECISIONS, SourceModel

FEWEST = 10
"""Searched models below which shares would be guesses."""

FULL_BITS = 32


def block_importance(evaluations: pd.DataFrame, layers: pd.DataFrame, source: SourceModel) -> pd.DataFrame:
    """One row per block in network order: the shares of the variance in accuracy and in latency it explains.

    A block is a residual branch or a layer outside of them, and stands for how much of it is left (`block_work`).
    Empty with fewer than `FEWEST` searched models.
    """
    searched = evaluations[evaluations["baseline"].isna()]
    if len(searched) < FEWEST:
        return pd.DataFrame(columns=["block", "accuracy", "latency"])
    work = block_work(layers[layers["number"].isin(searched["number"])], source).loc[searched["number"]]
    features = {name: work[name].tolist() for name in work.columns}
    shares = {
        "accuracy": importances(features, searched["search_accuracy"].tolist()),
        "latency": importances(features, searched["search_latency_ms"].tolist()),
    }
    return pd.DataFrame(shares).reindex(list(features)).rename_axis("block").reset_index()


def block_work(layers: pd.DataFrame, source: SourceModel) -> pd.DataFrame:
    """Evaluations (index: number) × blocks: bits times channels kept as a share of fp32's, weighted by MACs."""
    block, macs = blocks_of(source), {layer.name: max(1, layer.macs) for layer in source.layers}
    real = layers[layers["layer"] != UNATTRIBUTED]
    bits = real["requested"].map({name: p.weight_bits for name, p in PRECISIONS.items()}).astype(float).fillna(0.0)
    weight = real["layer"].map(macs)
    left = weight * (bits / FULL_BITS) * (real["kept"] / real["channels"]).astype(float)
    sums = pd.DataFrame({"left": left, "whole": weight}).groupby([real["number"], real["layer"].map(block)]).sum()
    return (sums["left"] / sums["whole"]).unstack().reindex(columns=list(dict.fromkeys(block.values())))


def blocks_of(source: SourceModel) -> dict[str, str]:
    """Layer -> its block, in network order: the outermost residual branch that holds it, else the layer itself."""
    owner: dict[str, str] = {}
    for branch in sorted(source.branches, key=lambda branch: -len(branch.layers)):
        if not any(layer in owner for layer in branch.layers):
            owner.update(dict.fromkeys(branch.layers, branch.name))
    return {layer.name: owner.get(layer.name, layer.name) for layer in source.layers}


def importance(shares: pd.DataFrame, units: Units) -> go.Figure:
    """Two bars per block: its share of the differences in the metric and in latency, as `block_importance` finds."""
    figure = style.figure(
        "Which blocks decide",
        "Share of the differences between the searched models that each block's choices explain; whatever the sliders.",
        height=360,
    )
    for column, name, colour in (("accuracy", units.label, style.FRONT), ("latency", "latency", style.SECOND)):
        figure.add_trace(
            go.Bar(
                x=shares["block"].tolist(),
                y=shares[column].tolist(),
                name=name,
                marker={"color": colour},
                hovertemplate=f"<b>%{{x}}</b>: %{{y:.1%}} of the differences in {name}<extra></extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(type="category", showgrid=False)
    style.label_columns(figure, shares["block"].tolist())
    figure.update_yaxes(title_text="share explained", tickformat=".0%", rangemode="tozero")
    return figure
