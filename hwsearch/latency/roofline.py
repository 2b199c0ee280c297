"""A latency table computed, not measured, for a device of which only a few rates are known (the roofline model).

Every unit takes the longer of computing and moving data, plus a start-up time (Williams, Waterman and Patterson,
"Roofline", 2009). Tables made of it are labelled as modelled, and never compared with measurements.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from math import ceil
from pathlib import Path

from hwsearch.errors import ConfigError
from hwsearch.latency.build import COVERED, target_device
from hwsearch.latency.design import Drawer, reachable_axes, references
from hwsearch.latency.files import STATED_ERROR, Manifest, write_table
from hwsearch.latency.fit import Entry
from hwsearch.latency.grid import extent
from hwsearch.latency.kernels import CALL, LAYER_KINDS, Column, Kind, Node
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.table import IMPORTED_ERROR, LatencyTable
from hwsearch.model.graph import Network
from hwsearch.types import PRECISIONS, Roofline, SearchSpace, Target, to_json


def roofline_us(roofline: Roofline, kind: Kind, node: Node) -> float:
    """Microseconds one unit takes: operations without weights, and conversions, only move data."""
    if kind == CALL:
        return roofline.call_us
    macs, moved = _work(roofline, kind, node)
    compute = macs / roofline.macs_per_us[kind.precision] if macs else 0.0
    layer = kind.unit in LAYER_KINDS or kind.unit[0].isupper()  # conversions are part of the layer beside them
    return (roofline.layer_us if layer else 0.0) + max(compute, moved / roofline.bytes_per_us)


def roofline_mj(roofline: Roofline, units: Mapping[Column, float]) -> float | None:
    """Millijoules of one example that consists of these units, so many of each; None where the rates are not known.

    Every multiply-accumulate and every byte moved takes the same (Horowitz, "Computing's energy problem", 2014); what
    the device takes when idle is not in it.
    """
    if not roofline.pj_per_mac:
        return None
    total = 0.0
    for (kind, node), count in units.items():
        if kind != CALL:
            macs, moved = _work(roofline, kind, node)
            total += count * (macs * roofline.pj_per_mac[kind.precision] if macs else 0.0)
            total += count * moved * roofline.pj_per_byte
    return total / 1e9


def _work(roofline: Roofline, kind: Kind, node: Node) -> tuple[float, float]:
    """Multiply-accumulates of a unit, channels rounded up to what the device takes at once, and bytes it moves."""
    inputs, outputs = node
    taps, positions, reached = extent(kind)
    width = PRECISIONS[kind.precision].act_bits / 8
    if kind.unit not in LAYER_KINDS:
        return 0.0, positions * (inputs + outputs) * width
    fan_in = 1 if kind.unit == "depthwise" else inputs
    at_once = roofline.channels_at_once
    padded = at_once * ceil(outputs / at_once) * (1 if fan_in == 1 else at_once * ceil(fan_in / at_once))
    weights = taps * fan_in * outputs * PRECISIONS[kind.precision].weight_bits / 8
    return reached * taps * padded, (positions * inputs + reached * outputs) * width + weights


def roofline_table(network: Network, space: SearchSpace, target: Target, folder: Path) -> LatencyTable:
    """The table of a target with a roofline, for the units `space` can reach, in `folder`; made again if it differs.

    Raises:
        ConfigError: `folder` holds a table that was not computed from a roofline.
    """
    assert target.roofline is not None
    origin = f"{target.roofline.origin} [{_digest(network, space, target)}]"
    try:
        known = LatencyTable.load(folder)
    except ConfigError:
        known = None
    if known is not None and known.manifest.origin == origin:
        return known
    if known is not None and known.manifest.source != "modelled":
        raise ConfigError(f"{folder} holds a measured table, which is not replaced by a computed one")
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    drawer = Drawer(network, space, reader)
    candidates = [*references(network, space, reader), *(drawer.candidate() for _ in range(COVERED))]
    units = dict.fromkeys(unit for candidate in candidates for unit in reader.units(candidate))
    axes = reachable_axes(units, (), drawer.widths, reader.full)
    entries = {kind: {node: _entry(target.roofline, kind, node) for node in axes[kind].nodes()} for kind in axes}
    manifest = Manifest(
        device=target_device(target),
        batch=target.batch,
        source="modelled",
        origin=origin,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        model_error=IMPORTED_ERROR,
        entries_sha256="",
    )
    return LatencyTable(folder, write_table(folder, manifest, entries), entries)


def _entry(roofline: Roofline, kind: Kind, node: Node) -> Entry:
    latency = roofline_us(roofline, kind, node)
    return Entry(latency, STATED_ERROR * latency, 0)


def _digest(network: Network, space: SearchSpace, target: Target) -> str:
    """Of everything the table depends on."""
    parts = [to_json(part) for part in (network.source, space, dataclasses.replace(target, options={}))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
