"""``hwsearch zoo``: the networks to start from, how large they are, and how fast on a target."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.cli.output import flags, note, print_json, print_table
from hwsearch.cli.verb import verb
from hwsearch.types import Latency, Target, to_json

if TYPE_CHECKING:
    from hwsearch.zoo.catalogue import Entry, Size

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="networks; all of them if none is named")]
Measure = Annotated[bool, typer.Option("--measure", help="build them in fp32 and int8, and measure their latency")]
On = Annotated[str, typer.Option("--target", metavar="NAME", help="what to measure on")]

PRECISIONS = ("fp32", "int8")
RANGE_IMAGES = 4
TIMEOUT_S = 600.0

Latencies = dict[str, Latency]


@verb
def zoo(names: Names = None, *, measure: Measure = False, target: On = "ort-cpu") -> None:
    """List the networks to start from: what a study calls them, input, parameters, multiply-accumulates, latency."""
    from hwsearch.space.target import load_target
    from hwsearch.zoo.catalogue import catalogue, find, size

    chosen = load_target(target) if measure else None
    entries = [find(name) for name in names] if names else list(catalogue())
    sizes = {entry.name: size(entry) for entry in entries}
    latencies = {entry.name: _measured(entry, chosen) if chosen else {} for entry in entries}
    if flags().json:
        networks = [
            {**to_json(entry), **to_json(sizes[entry.name]), "latency": to_json(latencies[entry.name])}
            for entry in entries
        ]
        print_json({"target": target if measure else None, "networks": networks})
        return
    headers = ["network", "model", "input", "M params", "M MACs", *(f"{name} ms" for name in PRECISIONS if measure)]
    print_table(headers, [_cells(entry, sizes[entry.name], latencies[entry.name]) for entry in entries])
    if any(entry.arguments for entry in entries):
        note("\nnames in -224: model_args: {classes: 1000, small: false}")


def _cells(entry: Entry, size: Size, latencies: Latencies) -> list[str]:
    return [
        entry.name,
        entry.factory,
        "x".join(map(str, entry.input_shape)),
        f"{size.params / 1e6:.2f}",
        f"{size.macs / 1e6:.1f}",
        *(f"{latency.best_ms:.3f}" for latency in latencies.values()),
    ]


def _measured(entry: Entry, target: Target) -> Latencies:
    """Precision -> latency, both measured in turns; the weights are random, which changes no latency."""
    from hwsearch.backends.benchmark import benchmark

    options = RunOptions(threads=target.threads, batch=target.batch, options=target.options)
    note(f"{entry.name}: building")
    with tempfile.TemporaryDirectory(prefix="hwsearch-") as folder:
        files = _built(entry, target.backend, options, Path(folder))
        found = benchmark(files, target.backend, options)
    return {precision: row.latency for precision, row in zip(PRECISIONS, found.rows, strict=True)}


def _built(entry: Entry, backend: str, options: RunOptions, folder: Path) -> list[Path]:
    """A model file for each precision."""
    import numpy as np
    import onnx
    import torch

    from hwsearch.backends.worker import Worker
    from hwsearch.compress.quantize import bins_for, ranges
    from hwsearch.model.template import export_template

    template = export_template(entry.build(), torch.zeros(1, *entry.input_shape))
    model, path, inputs = template.bind(), folder / "float.onnx", folder / "inputs.npy"
    onnx.save(model, path)
    np.save(inputs, np.random.default_rng(0).standard_normal((RANGE_IMAGES, *entry.input_shape), np.float32))
    files = []
    with Worker(backend, options) as worker:
        for name in PRECISIONS:
            precision = dict.fromkeys(template.layers, name)
            tensors = get_backend(backend).tensors_to_observe(model, precision)
            seen = worker.observe(path, tensors, inputs, bins=bins_for("minmax"), timeout_s=TIMEOUT_S)
            request = LowerRequest(precision=precision, ranges=ranges(seen))
            files.append(Path(worker.build(path, request, folder / name, timeout_s=TIMEOUT_S).path))
    return files
