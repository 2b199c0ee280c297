"""``hwsearch benchmark``: model files timed in turns, and which of them really differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.backends.base import RunOptions
from hwsearch.cli.output import flags, note, print_json, print_table
from hwsearch.cli.verb import verb
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.backends.benchmark import BenchmarkRow

Models = Annotated[list[Path], typer.Argument(metavar="MODEL...", help=".onnx or .xml; the first is the reference")]
On = Annotated[str, typer.Option("--target", metavar="NAME", help="what to run them on")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="default: the target's")]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", min=1, help="default: the target's")]


@verb
def benchmark(models: Models, *, target: On = "ort-cpu", threads: Threads = None, batch: Batch = None) -> None:
    """Time model files in turns: latency with intervals, and whether each is faster, slower or tied with the first."""
    from hwsearch.backends.benchmark import benchmark as measure
    from hwsearch.space.target import load_target

    chosen = load_target(target, threads=threads, batch=batch)
    options = RunOptions(threads=chosen.threads, batch=chosen.batch, options=chosen.options)
    found = measure(models, chosen.backend, options, progress=note)
    if flags().json:
        print_json(
            {
                "target": target,
                "device": to_json(found.device),
                "environment": to_json(found.environment),
                "warnings": list(found.warnings),
                "models": [to_json(row) for row in found.rows],
            }
        )
        return
    print_table(["model", "ms", "95 % interval", "p99", "MB", "vs first", ""], [_cells(row) for row in found.rows])
    note("\n".join([f"\n{target}, {found.device.chip}", *(f"warning: {warning}" for warning in found.warnings)]))


def _cells(row: BenchmarkRow) -> list[str]:
    low, high = row.latency.ci95_ms
    against = row.against_first
    return [
        row.name,
        f"{row.latency.best_ms:.4f}",
        f"[{low:.4f}, {high:.4f}]",
        f"{row.latency.p99_ms:.4f}",
        f"{row.size_bytes / 1e6:.3f}",
        f"{against.ratio:.3f}" if against else "",
        against.verdict if against else "",
    ]
