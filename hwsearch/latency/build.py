"""Building a table: draw micro-models, measure them in one campaign, fit the costs of their units."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.latency.campaign import Progress, measure_jobs
from hwsearch.latency.design import Drawer, choose, reachable_axes
from hwsearch.latency.files import Manifest, write_table
from hwsearch.latency.fit import Equation, fit
from hwsearch.latency.network import NetworkUnits
from hwsearch.latency.table import LatencyTable
from hwsearch.model.graph import Network
from hwsearch.space.space import uniform
from hwsearch.types import Device, SearchSpace, Target

MICRO_MODELS = 250
DRAWN, WINDOWS = 120, 8  # candidates drawn, and windows drafted from each
SAMPLE = 150  # whole candidates whose prediction the choice of micro-models serves
MODEL_ERROR = 0.02  # of a whole model, relative, until a check says more


def target_device(target: Target) -> Device:
    """The device a table for `target` is valid on; a target without a backend is its own device."""
    if target.backend == "table":
        return Device(backend="table", backend_version="", chip=target.name, isa=(), threads=target.threads)
    return get_backend(target.backend).device(RunOptions(threads=target.threads, batch=target.batch))


def build_table(
    network: Network,
    space: SearchSpace,
    target: Target,
    folder: Path,
    progress: Progress,
    *,
    micro_models: int = MICRO_MODELS,
    seed: int = 0,
) -> LatencyTable:
    """Measure the units `space` can reach on `target` and write the table to `folder`; it is not yet checked.

    Raises:
        EvaluationError: a micro-model cannot be built or measured.
    """
    backend = get_backend(target.backend)
    reader = NetworkUnits(network.source, network.template, backend.tensors_to_observe)
    drawer = Drawer(network, space, reader, seed)
    progress("draw", 0, micro_models)
    drafts, wholes = drawer.drafts(DRAWN, WINDOWS), [drawer.candidate() for _ in range(SAMPLE)]
    units = [unit for candidate in wholes for unit in reader.units(candidate)]
    asked = {unit.kind for unit in units}
    axes = reachable_axes(units, drafts, drawer.widths, reader.full)
    chosen = choose(drafts, [reader.counts(candidate) for candidate in wholes], axes, micro_models)
    whole = uniform(network.source, "fp32")
    jobs = [drawer.whole_job(whole), *(drawer.micro_job(draft) for draft in chosen)]
    latencies = measure_jobs(jobs, target, progress)
    counts = [reader.counts(whole), *(draft.counts for draft in chosen)]
    equations = [
        Equation(units, 1e3 * found.best_ms, 1e3 * found.sigma_ms)
        for units, found in zip(counts, latencies, strict=True)
        if found is not None
    ]
    entries = {kind: found for kind, found in fit(equations, axes).items() if kind in asked}
    manifest = Manifest(
        device=target_device(target),
        batch=target.batch,
        source="measured",
        origin=f"{len(equations)} micro-models of {network.source.name}, interleaved in one campaign",
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        model_error=MODEL_ERROR,
        entries_sha256="",
        reference=network.source.name,
        reference_ms=latencies[0].best_ms if latencies[0] else None,
    )
    return LatencyTable(folder, write_table(folder, manifest, entries), entries)
