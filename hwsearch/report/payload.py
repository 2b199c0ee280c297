"""The data a report page carries: every fact once, figures included."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any, cast

import pandas as pd

from hwsearch.report import layer_frames, style
from hwsearch.report.layer_maps import map_rows
from hwsearch.report.links import plain
from hwsearch.report.view import Units
from hwsearch.report.views import VIEWS, Facts


def payload(facts: Facts) -> dict[str, Any]:
    """Everything the page's script reads, as strict JSON data."""
    run, evaluations, shown, found = facts.run, facts.evaluations, facts.units, facts.verdict
    recommended = _number(evaluations, "key", found.key)
    compared = [recommended, _number(evaluations, "baseline", "int8"), _number(evaluations, "baseline", "fp32")]
    drawn = {name: view.draw(facts) for name, view in VIEWS.items()}
    data = {
        "name": f"{run.config.name}-{run.target.name}",
        "export": f"hwsearch export {shlex.quote(str(run.path))}",
        "units": dataclasses.asdict(shown) | {"axis": shown.axis},
        "final": bool(evaluations["final"].any()),
        "evaluations": _rows(evaluations, shown),
        "recommended": recommended,
        "selected": list(dict.fromkeys(number for number in compared if number is not None))[:2],
        "map_rows": map_rows(evaluations)["number"].tolist(),
        "layers": _layers(facts.layers),
        "profiles": _profiles(facts.layers),
        "colours": style.FORMATS | style.STATUSES,
        "figures": {name: figure.to_plotly_json() for name, figure in drawn.items() if figure is not None},
    }
    return cast("dict[str, Any]", plain(data))


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
        .drop(columns=["size_bytes", "median_ms", "p90_ms", "params", "macs"])
        .drop(columns=[name for name in evaluations.columns if name.startswith("search_")])
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
