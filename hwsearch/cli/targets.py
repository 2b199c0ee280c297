"""``hwsearch targets``: the devices one can ask for, and which of them can run here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.cli.output import flags, next_step, note, print_json, print_table
from hwsearch.cli.verb import verb
from hwsearch.errors import HwSearchError
from hwsearch.space.profile import TABLE
from hwsearch.space.target import load_target, native_precisions, target_names
from hwsearch.types import Target, to_json

Files = Annotated[
    list[str] | None, typer.Argument(metavar="[TARGET...]", help="names or target files; default: all built in")
]


@verb
def targets(names: Files = None) -> None:
    """List targets: what each accelerates on this machine, its sparsity goal and limits, and where latency comes from.

    A target file of one's own is checked on the way.
    """
    found = [_facts(load_target(name)) for name in names or target_names()]
    if flags().json:
        print_json({"targets": found})
        return
    print_table(
        ["target", "here", "conv", "linear", "threads", "channels", "sparsity", "limits", "latency"],
        [_cells(facts) for facts in found],
    )
    note("\n".join(f"{facts['name']}: {facts['problem']}" for facts in found if facts["problem"]))
    next_step("hwsearch", "compress", "STUDY", "--target", found[0]["name"])


def _facts(target: Target) -> dict[str, Any]:
    """The profile, whether it runs here, and which precisions are native here."""
    problem, isa = _here(target)
    native = {} if problem else {op: list(native_precisions(target, op, isa)) for op in target.ops}
    return {**to_json(target), "here": not problem, "problem": problem, "native": native, "latency": _source(target)}


def _here(target: Target) -> tuple[str | None, tuple[str, ...]]:
    """Why a target cannot run on this machine, or None; and the instruction sets of the chip."""
    try:
        backend = get_backend(target.backend)
        available = backend.availability()
        if not available.ok:
            return available.problem, ()
        return None, () if target.backend == TABLE else backend.device(RunOptions()).isa
    except HwSearchError as error:
        return error.message, ()


def _source(target: Target) -> str:
    if target.backend != TABLE:
        return "measured"
    if target.roofline is not None:
        return "modelled (roofline)"
    return "table" if target.table is not None else "needs a table: hwsearch table import"


def _cells(facts: dict[str, Any]) -> list[str]:
    sparsity, limits = facts["sparsity"], facts["limits"]
    return [
        facts["name"],
        "yes" if facts["here"] else "no",
        *(", ".join(facts["native"].get(op) or facts["ops"].get(op, {}).get("accepts", ["fp32"])) for op in _SHOWN),
        str(facts["threads"]),
        f"x{facts['granularity']}",
        f"{sparsity['goal']:.0%} {sparsity['metric']}" if sparsity else "",
        ", ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None),
        facts["latency"],
    ]


_SHOWN = ("conv", "linear")
