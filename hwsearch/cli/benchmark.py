"""``hwsearch benchmark``: model files timed in turns, and which of them really differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.backends.base import RunOptions
from hwsearch.cli.output import flags, note, print_json, print_table
from hwsearch.cli.verb import verb
from hwsearch.errors import ConfigError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.backends.benchmark import BenchmarkRow
    from hwsearch.types import Energy

Models = Annotated[list[Path], typer.Argument(metavar="MODEL...", help=".onnx or .xml; the first is the reference")]
On = Annotated[str, typer.Option("--target", metavar="NAME", help="what to run them on")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="default: the target's")]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", min=1, help="default: the target's")]

Pair = Annotated[
    str | None,
    typer.Option("--pair", metavar="NAME", help="a second target to share batches with; OpenVINO: also auto or hetero"),
]
WithEnergy = Annotated[bool, typer.Option("--energy", help="also energy per example, by the counters of the device")]
Examples = Annotated[int, typer.Option("--examples", metavar="N", min=2, help="of a batch that a pair shares")]


@verb
def benchmark(
    models: Models,
    *,
    target: On = "ort-cpu",
    threads: Threads = None,
    batch: Batch = None,
    pair: Pair = None,
    examples: Examples = 64,
    energy: WithEnergy = False,
) -> None:
    """Time model files in turns: latency with intervals, and whether each is faster, slower or tied with the first.

    With --pair, the throughput of one model on two devices that share each batch; `auto` and `hetero` leave it to
    OpenVINO, where it sees several devices. With --energy, also the energy per example net of idle, where counted.
    """
    from hwsearch.backends.benchmark import benchmark as measure
    from hwsearch.backends.spending import energies
    from hwsearch.space.target import load_target

    if pair in ("auto", "hetero"):
        _benchmark_shared(models, target, pair, examples)
        return
    if pair is not None:
        _benchmark_pair(models, (target, pair), examples)
        return
    chosen = load_target(target, threads=threads, batch=batch)
    options = RunOptions(threads=chosen.threads, batch=chosen.batch, options=chosen.options)
    found = measure(models, chosen.backend, options, progress=note)
    spent = energies(models, chosen.backend, options) if energy else {}
    if flags().json:
        print_json(
            {
                "target": target,
                "device": to_json(found.device),
                "environment": to_json(found.environment),
                "warnings": list(found.warnings),
                "models": [to_json(row) for row in found.rows],
                **({"energy": to_json(spent)} if energy else {}),
            }
        )
        return
    print_table(["model", "ms", "95 % interval", "p99", "MB", "vs first", ""], [_cells(row) for row in found.rows])
    if energy:
        headers = ["model", "mJ net of idle", "95 % interval", "mJ"]
        print_table(headers, [_energy_cells(name, found) for name, found in spent.items()])
    note("\n".join([f"\n{target}, {found.device.chip}", *(f"warning: {warning}" for warning in found.warnings)]))


def _energy_cells(name: str, energy: Energy | None) -> list[str]:
    if energy is None:
        return [name, "not counted here", "", ""]
    low, high = energy.ci95_mj
    return [name, f"{energy.net_mj:.4g}", f"[{low:.4g}, {high:.4g}]", f"{energy.total_mj:.4g}"]


def _benchmark_pair(models: list[Path], names: tuple[str, str], examples: int) -> None:
    """Each device on a core of its own, the split by what each reaches alone."""
    from hwsearch.backends.environment import usable_cores
    from hwsearch.backends.pair import pair_on_cores
    from hwsearch.space.target import load_target

    cores = usable_cores()
    if len(models) != 1 or len(cores) < 2:
        raise ConfigError("a pair runs one model on two cores", where=f"{len(models)} models, {len(cores)} cores")
    chosen = [load_target(name) for name in names]
    options = [RunOptions(cpus=(core,), options=t.options) for core, t in zip(cores[-2:], chosen, strict=True)]
    found = pair_on_cores(models[0], (chosen[0].backend, chosen[1].backend), (options[0], options[1]), examples)
    if flags().json:
        print_json({"pair": list(names), "examples": examples, **to_json(found), "efficiency": found.efficiency})
        return
    rows = [[name, f"{rate:.0f}", str(n)] for name, rate, n in zip(names, found.alone, found.split, strict=True)]
    print_table(["", "examples/s", "of a batch"], [*rows, ["together", f"{found.together:.0f}", str(examples)]])
    note(f"{found.efficiency:.0%} of the sum of both, {found.together / max(found.alone):.2f} x the faster alone")


def _benchmark_shared(models: list[Path], target: str, way: str, examples: int) -> None:
    """All devices OpenVINO sees, shared by itself."""
    from hwsearch.backends.openvino_devices import measure_shared, several_devices
    from hwsearch.space.target import load_target

    if len(models) != 1 or load_target(target).backend != "openvino":
        raise ConfigError(f"--pair {way} runs one model in OpenVINO", where=f"{len(models)} models, --target {target}")
    found = measure_shared(models[0], way, several_devices(way), examples)
    if flags().json:
        print_json({"pair": way, "examples": examples, **to_json(found), "efficiency": found.efficiency})
        return
    rows = [[name, f"{rate:.0f}"] for name, rate in found.alone.items()]
    print_table(["", "examples/s"], [*rows, ["together", f"{found.together:.0f}"]])
    gain = found.together / max(found.alone.values())
    note(f"{found.efficiency:.0%} of the sum of all, {gain:.2f} x the fastest alone")


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
