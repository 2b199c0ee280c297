"""The facts of a run layer by layer: what was chosen, what was requested, what ran, and how long it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hwsearch.report.frames import with_none
from hwsearch.report.view import RunView
from hwsearch.types import Candidate, LayerInfo, LayerTime, SourceModel, Success, Trial

UNATTRIBUTED = "unattributed"
"""`layer` of the row that holds the time of kernels traced to no layer: quantise, reorder, pooling, adds."""

COLUMNS = ["number", "layer", "channels", "kept", "requested", "executed", "matched", "dropped", "ms", "share", "kinds"]


def layers(run: RunView) -> pd.DataFrame:
    """One row per successful evaluation and layer, in network order, then one `UNATTRIBUTED` row.

    `requested` is None in a dropped branch; `executed` is None where the runtime does not say; `matched` is None where
    that leaves the question open. `share` is of the evaluation's profiled time, None without profile: profilers slow
    small models, so `ms` compares layers of one evaluation, not evaluations.
    """
    widths = {group.name: group.channels for group in run.source.groups}
    rows = [
        row
        for trial in run.trials
        if isinstance(trial.outcome, Success)
        for row in _layers_of(trial, trial.outcome, run.source, widths)
    ]
    return with_none(pd.DataFrame(rows, columns=COLUMNS), "requested", "executed", "matched")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Per evaluation (index: number): `mismatched` and `unreported` layers, and the `unattributed` share of time."""
    real = frame[(frame["layer"] != UNATTRIBUTED) & ~frame["dropped"].astype(bool)]
    counted = real.groupby("number")["matched"]
    rest = frame[frame["layer"] == UNATTRIBUTED].set_index("number")["share"]
    return pd.DataFrame(
        {
            "mismatched": counted.apply(lambda found: int((found == False).sum())),  # noqa: E712  None is not False
            "unreported": counted.apply(lambda found: int(found.isna().sum())),
            "unattributed": rest,
        }
    )


@dataclass(slots=True)
class _Spent:
    """What the runtime spent on one layer."""

    ms: float = 0.0
    timed: bool = False
    executed: dict[str, None] = field(default_factory=dict)
    kinds: dict[str, None] = field(default_factory=dict)

    def add(self, unit: LayerTime, part: float) -> None:
        self.kinds[unit.kind] = None
        if unit.format is not None:
            self.executed[unit.format] = None
        if unit.ms is not None:
            self.ms += part * unit.ms
            self.timed = True


def _layers_of(trial: Trial, found: Success, source: SourceModel, widths: dict[str, int]) -> list[dict[str, Any]]:
    spent = _attribute(found.layers, source)
    total = sum(entry.ms for entry in spent.values())
    rows = [_layer(trial, layer, widths, spent[layer.name], total) for layer in source.layers]
    rest = spent[UNATTRIBUTED]
    return [*rows, _row(trial, UNATTRIBUTED, rest, total)]


def _attribute(units: Iterable[LayerTime], source: SourceModel) -> defaultdict[str, _Spent]:
    """Layer -> what was spent on it; a kernel that computes several layers is split by their MACs."""
    macs = {layer.name: max(1, layer.macs) for layer in source.layers}
    spent: defaultdict[str, _Spent] = defaultdict(_Spent)
    for unit in units:
        known = [name for name in unit.source_layers if name in macs]
        whole = sum(macs[name] for name in known)
        for name in known:
            spent[name].add(unit, macs[name] / whole)
        if not known:
            spent[UNATTRIBUTED].add(unit, 1.0)
    return spent


def _layer(trial: Trial, layer: LayerInfo, widths: dict[str, int], spent: _Spent, total: float) -> dict[str, Any]:
    requested = trial.candidate.precision.get(layer.name)
    executed = "+".join(spent.executed) or None
    channels, kept = _channels(layer, widths, trial.candidate)
    dropped = requested is None
    return _row(trial, layer.name, spent, total) | {
        "channels": channels,
        "kept": 0 if dropped else kept,
        "requested": requested,
        "executed": None if dropped else executed,
        "matched": None if dropped or executed is None else executed == requested,
        "dropped": dropped,
    }


def _row(trial: Trial, name: str, spent: _Spent, total: float) -> dict[str, Any]:
    return {
        "number": trial.number,
        "layer": name,
        "ms": spent.ms if spent.timed else None,
        "share": spent.ms / total if spent.timed and total > 0 else None,
        "kinds": ", ".join(spent.kinds),
        "dropped": False,
    }


def _channels(layer: LayerInfo, widths: dict[str, int], candidate: Candidate) -> tuple[int, int]:
    """Output channels of a layer in the network that was given, and how many of them are kept."""
    if layer.width_group not in widths:
        width = layer.out_shape[-1] if layer.op == "linear" else layer.out_shape[0]
        return width, width
    full = widths[layer.width_group]
    return full, candidate.keep.get(layer.width_group, full)
