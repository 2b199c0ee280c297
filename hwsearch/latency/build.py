"""Building a table: choose models, whole ones and parts, measure them in one campaign, fit the costs of their units."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from math import hypot
from pathlib import Path

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.latency.campaign import MANY, Progress, measure_jobs
from hwsearch.latency.design import Draft, Drawer, choose, reachable_axes, references
from hwsearch.latency.files import Manifest, write_table
from hwsearch.latency.fit import Equation, fit
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.table import LatencyTable
from hwsearch.model.graph import Network
from hwsearch.types import Device, Latency, SearchSpace, Target

MODELS = 280
DRAWN, WINDOWS = 75, 8  # candidates drawn, and windows drafted from each
WHOLES = 300  # whole candidates among the drafts
SAMPLE = 150  # whole candidates whose prediction the choice of models serves
COVERED = 1000  # candidates whose units get an entry, measured or not
MODEL_ERROR = 0.02  # of a whole model, relative, until a check says more


def target_device(target: Target) -> Device:
    """The device a table for `target` is valid on; a target without a backend is its own device."""
    if target.backend == "table":
        return Device(backend="table", backend_version="", chip=target.name, isa=(), threads=target.threads)
    options = RunOptions(threads=target.threads, batch=target.batch, options=target.options)
    return get_backend(target.backend).device(options)


def build_table(
    network: Network,
    space: SearchSpace,
    target: Target,
    folder: Path,
    progress: Progress,
    *,
    models: int = MODELS,
    seed: int = 0,
) -> LatencyTable:
    """Measure the units `space` can reach on `target` and write the table to `folder`; it is not yet checked.

    Raises:
        EvaluationError: a model cannot be built, or none can be measured.
    """
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    drawer = Drawer(network, space, reader, seed)
    progress("draw", 0, models)
    shared = references(network, space, reader)
    covered = shared + [drawer.candidate() for _ in range(COVERED)]
    units = dict.fromkeys(unit for candidate in covered for unit in reader.units(candidate))
    parts = drawer.parts(DRAWN, WINDOWS)
    axes = reachable_axes(units, parts, drawer.widths, reader.full)
    drafts = [*parts, *map(drawer.whole, covered[-WHOLES:])]
    sample = [reader.counts(candidate) for candidate in covered[:SAMPLE]]
    chosen = [*map(drawer.whole, shared), *choose(drafts, sample, axes, models)]
    latencies = measure_jobs([drawer.job(draft) for draft in chosen], target, MANY, progress)
    equations = _equations(chosen, latencies)
    reached = {unit.kind for unit in units}
    entries = {kind: found for kind, found in fit(equations, axes).items() if kind in reached}
    manifest = Manifest(
        device=target_device(target),
        batch=target.batch,
        source="measured",
        origin=f"{len(equations)} whole and partial models of {network.source.name}, interleaved in one campaign",
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        model_error=MODEL_ERROR,
        entries_sha256="",
        references_ms={c.key: found.best_ms for c, found in zip(shared, latencies, strict=False) if found},
    )
    return LatencyTable(folder, write_table(folder, manifest, entries), entries)


def _equations(drafts: Sequence[Draft], latencies: Sequence[Latency | None]) -> list[Equation]:
    """One equation for every model that could be run."""
    return [
        Equation(draft.counts, 1e3 * found.best_ms, 1e3 * hypot(found.sigma_ms, draft.error * found.best_ms))
        for draft, found in zip(drafts, latencies, strict=True)
        if found
    ]
