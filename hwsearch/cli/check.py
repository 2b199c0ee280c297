"""``hwsearch check``: what a search would cover and what is refused; or what a device would refuse of an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsearch.cli.output import flags, next_step, note, print_facts, print_json, print_text
from hwsearch.cli.verb import Settings, verb
from hwsearch.config import load_study
from hwsearch.errors import ConfigError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.search.prepare import Plan

Subject = Annotated[
    Path, typer.Argument(metavar="STUDY|MODEL", help="study.yaml or study.toml, the folder of one, or an .onnx file")
]
On = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="this target alone; for an .onnx file, whose rules to check"),
]


@verb
def check(subject: Subject, target: On = None, settings: Settings = None) -> None:
    """Check a study without searching: model, data, targets, and what each target refuses; or check an ONNX file."""
    if subject.suffix == ".onnx":
        check_model(subject, target)
        return
    from hwsearch.search.prepare import plan_study

    config = load_study(subject, settings or ())
    plans = plan_study(config.model_copy(update={"targets": (target,)}) if target else config)
    if flags().json:
        print_json({"plans": [to_json(plan) for plan in plans]})
        return
    for plan in plans:
        print_plan(plan)
    next_step("hwsearch", "search", subject)


def check_model(path: Path, name: str | None) -> None:
    """Print the rules of a target's runtime that an ONNX file breaks; the runtime itself need not be here.

    Raises:
        ConfigError: no target is named, it has no such rules, or the file cannot be read.
        typer.Exit: with code 1, if a rule is broken.
    """
    from hwsearch.backends.base import ChecksOnnx, get_backend
    from hwsearch.space.target import load_target

    if name is None:
        raise ConfigError("an ONNX file is checked against a target", hint="add --target tensorrt-gpu")
    backend = get_backend(load_target(name).backend)
    if not isinstance(backend, ChecksOnnx):
        raise ConfigError(f"`{name}` has no rules for ONNX files", allowed="targets of tensorrt and trtexec")
    found = backend.violations(_read(path))
    if flags().json:
        print_json({"model": str(path), "target": name, "violations": [to_json(entry) for entry in found]})
    else:
        print_text("\n".join(map(str, found)) or f"{path}: nothing `{name}` is known to refuse")
        note("The builder has the last word: this checks rules, not whether every kernel exists." * (not found))
    if found:
        raise typer.Exit(1)


def _read(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def print_plan(plan: Plan) -> None:
    """Print what a search of one target would cover, and what it would not offer."""
    print_facts(
        {
            "target": plan.target,
            "layers": str(plan.layers),
            "prune groups": str(plan.groups),
            "droppable branches": str(plan.branches),
            "choices": f"{plan.dimensions} dimensions, about 10^{plan.space_log10_size:.0f} models",
            "evaluations": str(plan.evaluations),
        }
    )
    print_text("".join(f"refused: {reason}\n" for reason in plan.refused))
