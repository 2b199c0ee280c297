"""The data a report page carries: every fact once, figures included."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go

from hwsearch.report import figures, frames, layer_frames, style
from hwsearch.report.layer_maps import map_rows
from hwsearch.report.links import plain
from hwsearch.report.verdict import Verdict
from hwsearch.report.view import RunView, Units


def payload(run: RunView, evaluations: pd.DataFrame, shown: Units, found: Verdict) -> dict[str, Any]:
    """Everything the page's script reads, as strict JSON data."""
    layers = layer_frames.layers(run)
    recommended = _number(evaluations, "key", found.key)
    compared = [recommended, _number(evaluations, "baseline", "int8"), _number(evaluations, "baseline", "fp32")]
    data = {
        "name": f"{run.config.name}-{run.target.name}",
        "export": f"hwsearch export {shlex.quote(str(run.path))}",
        "units": dataclasses.asdict(shown) | {"axis": shown.axis},
        "final": bool(evaluations["final"].any()),
        "evaluations": _rows(evaluations, shown),
        "recommended": recommended,
        "selected": list(dict.fromkeys(number for number in compared if number is not None))[:2],
        "map_rows": map_rows(evaluations)["number"].tolist(),
        "layers": _layers(layers),
        "profiles": _profiles(layers),
        "colours": style.FORMATS | style.STATUSES,
        "figures": {
            name: figure.to_plotly_json() for name, figure in _figures(run, evaluations, layers, shown).items()
        },
    }
    return cast("dict[str, Any]", plain(data))


def _figures(run: RunView, evaluations: pd.DataFrame, layers: pd.DataFrame, shown: Units) -> dict[str, go.Figure]:
    drawn = {
        "pareto": figures.pareto(evaluations, shown),
        "layer_formats": figures.layer_formats(layers, evaluations, run.source, shown),
        "layer_channels": figures.layer_channels(layers, evaluations, run.source, shown),
        "layer_latency": figures.layer_latency(layers),
        "hypervolume": figures.hypervolume(frames.hypervolume(run), frames.random_search(run)),
        "stage_time": figures.stage_time(frames.stages(run)),
        "parallel": figures.parallel(evaluations, shown),
    }
    if run.sensitivity is not None:
        drawn["sensitivity"] = figures.sensitivity_map(run.sensitivity, run.source)
    return drawn


def _number(evaluations: pd.DataFrame, column: str, value: str | None) -> int | None:
    """Number of the first evaluation with this value; None if there is none."""
    found = evaluations.loc[evaluations[column] == value, "number"]
    return None if found.empty else int(found.iloc[0])


def _rows(evaluations: pd.DataFrame, shown: Units) -> list[dict[Any, Any]]:
    """Evaluations in the units people read: metric as shown, megabytes, speed against fp32."""
    fp32 = evaluations.loc[evaluations["baseline"] == "fp32", "latency_ms"]
    metric = {name: shown.factor * evaluations[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}
    return (
        evaluations.assign(
            **metric,
            size_mb=evaluations["size_bytes"] / 1e6,
            speedup=float(fp32.iloc[0]) / evaluations["latency_ms"] if len(fp32) else None,
        )
        .drop(columns=["size_bytes", "search_accuracy", "search_latency_ms", "median_ms", "p90_ms", "params", "macs"])
        .to_dict("records")
    )


def _layers(layers: pd.DataFrame) -> dict[str, Any]:
    """Per evaluation one small integer or count per layer, formats by position in `formats`, -1 for none."""
    real = layers[layers["layer"] != layer_frames.UNATTRIBUTED]
    formats = sorted({*real["requested"].dropna(), *real["executed"].dropna()})
    code = {name: i for i, name in enumerate(formats)}
    by_number = real.groupby("number", sort=False)
    first = real.drop_duplicates("layer")
    return {
        "names": first["layer"].tolist(),
        "channels": first["channels"].tolist(),
        "formats": formats,
        "requested": {n: [code.get(name, -1) for name in rows["requested"]] for n, rows in by_number},
        "executed": {n: [code.get(name, -1) for name in rows["executed"]] for n, rows in by_number},
        "kept": {n: rows["kept"].tolist() for n, rows in by_number},
    }


def _profiles(layers: pd.DataFrame) -> dict[Any, Any]:
    alive = layers[(layers["layer"] != layer_frames.UNATTRIBUTED) & ~layers["dropped"].astype(bool)]
    found = layer_frames.summary(layers).assign(layers=alive.groupby("number").size())
    return found.to_dict("index")
