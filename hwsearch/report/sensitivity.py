"""How much each single choice hurts, as a frame and as a heat map: a column per layer, a row per choice."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from hwsearch.patterns import share_of_zeros
from hwsearch.report import style
from hwsearch.report.layer_maps import heat_map_frame
from hwsearch.search.effects.effects import EVERYWHERE, Effect, Sensitivity
from hwsearch.types import PRECISIONS, SourceModel

DROPPED = "branch dropped"
DECADES = 4
"""Of loss between the palest and the darkest cell."""

MEASURES = {"kl": "KL divergence from the original's outputs, in nats", "relative_error": "Relative squared error"}


def effects(found: Sensitivity, source: SourceModel) -> pd.DataFrame:
    """One row per layer and choice that changes something, in the order of the network.

    A branch's effect stands at each of its layers, a prune group's at the layer it is named after. `row` is the heat
    map's, `mark` what stands in the cell, `words` the effect in words.
    """
    widths = {group.name: group.channels for group in source.groups}
    branches = {branch.name: branch.layers for branch in source.branches}
    rows = [
        (layer, effect.loss, effect.sigma, *_described(effect, widths))
        for effect in found.effects
        if effect.name != EVERYWHERE and not _changes_nothing(effect)
        for layer in branches.get(effect.name if effect.kind == "drop" else "", (effect.name,))
    ]
    return pd.DataFrame(rows, columns=["layer", "loss", "sigma", "row", "mark", "words"])


def sensitivity_map(found: Sensitivity, source: SourceModel) -> go.Figure:
    """Loss of every single choice (rows) at every layer (columns, network order), on a logarithmic colour scale."""
    frame = effects(found, source)
    labels = pd.DataFrame({"label": sorted(frame["row"].unique(), key=_order)})
    how = "built, repaired and compared" if found.method == "measured" else "estimated from gradients"
    figure = heat_map_frame(
        "What each choice alone does",
        f"{MEASURES[found.measure]}, each choice {how} on {found.images} images; redder hurts more.",
        source,
        labels,
    )
    names = [layer.name for layer in source.layers]

    def matrix(column: str) -> pd.DataFrame:
        return frame.pivot(index="row", columns="layer", values=column).reindex(index=labels["label"], columns=names)

    loss = matrix("loss").astype(float)
    finite = loss.to_numpy()[np.isfinite(loss.to_numpy())]
    top = math.log10(max([*finite, 1e-9]))
    decades = np.arange(top - DECADES, top + 0.5)
    figure.add_trace(
        go.Heatmap(
            z=np.log10(loss.clip(10 ** decades[0], 10**top).to_numpy()).tolist(),
            x=names,
            y=labels["label"].tolist(),
            text=matrix("mark").fillna("").to_numpy().tolist(),
            customdata=matrix("words").fillna("").to_numpy().tolist(),
            texttemplate="%{text}",
            textfont={"size": 10.5},
            colorscale=style.LOSS_SCALE,
            zmin=decades[0],
            zmax=top,
            xgap=1.5,
            ygap=1.5,
            hoverongaps=False,
            colorbar={
                "title": {"text": "loss", "side": "top", "font": {"size": 12.5}},
                "thickness": 10,
                "len": 0.6,
                "tickvals": decades.tolist(),
                "ticktext": [f"{10**decade:.1g}" for decade in decades],
            },
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    return figure


def _described(effect: Effect, widths: Mapping[str, int]) -> tuple[str, str, str]:
    """Row of the heat map, what stands in the cell, and the effect in words."""
    if effect.kind == "drop":
        row, mark, choice = DROPPED, "", f"branch {effect.name} dropped"
    elif effect.kind == "precision":
        row, mark, choice = str(effect.value), "", f"{effect.name} in {effect.value}"
    elif effect.kind == "pattern":
        row, mark = f"zeros: {effect.value}", ""
        choice = f"{effect.name} with zeros {effect.value} ({share_of_zeros(str(effect.value)):.0%} of its weights)"
    else:
        full = widths[effect.name]
        row, mark = f"{int(effect.value) / full:.0%} of the channels", str(effect.value)
        choice = f"{effect.value} of {full} channels of {effect.name}"
    if effect.problem is not None:
        return row, "×", f"{choice}: failed, {effect.problem}"
    return row, mark, f"{choice}: {effect.loss:.3g} ± {effect.sigma:.1g}"


def _order(row: str) -> tuple[int, float, str]:
    """Branches on top, then channels from few to many, precisions from narrow to wide, and patterns of zeros."""
    if row in PRECISIONS:
        return 2, PRECISIONS[row].weight_bits, row
    if row.startswith("zeros: "):
        return 3, -share_of_zeros(row.removeprefix("zeros: ")), row
    return (0, 0.0, row) if row == DROPPED else (1, float(row.partition("%")[0]), row)


def _changes_nothing(effect: Effect) -> bool:
    return effect.loss == effect.sigma == 0.0
