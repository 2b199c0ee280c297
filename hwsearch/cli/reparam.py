"""``hwsearch reparam``: a network trained with branches, merged into the one that is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.cli.output import flags, note, print_facts, print_json
from hwsearch.cli.verb import verb
from hwsearch.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwsearch.reparam.guard import LayerHealth

SUFFIXES = (".pt2", ".pt", ".pth")

ModelSpec = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:factory, file.py:factory or model.pt2")]
Weights = Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="state dict of the training form")]
Shape = Annotated[str, typer.Option("--shape", metavar="C,H,W", help="of one example")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="a .pt2 program, or a .pt state dict")]


@verb
def reparam(model: ModelSpec, *, shape: Shape, out: Out, weights: Weights = None) -> None:
    """Merge the training branches of a model, check that it computes the same, and say which layers quantise badly."""
    import torch

    from hwsearch.model.graph import trace
    from hwsearch.model.load import load_model
    from hwsearch.reparam.guard import inspect
    from hwsearch.reparam.merge import check_same, merge

    if out.suffix not in SUFFIXES:
        raise ConfigError(f"unknown kind of file `{out.name}`", where="--out", allowed=", ".join(SUFFIXES))
    example = torch.randn(2, *_sizes(shape), generator=torch.Generator().manual_seed(0))
    before = load_model(model, weights=weights)
    after = merge(before)
    difference = check_same(before, after, example)
    layers = inspect(trace(after, example, name=model))
    _save(after, example, out)
    _print(before, after, difference, layers, out)


def _sizes(shape: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in shape.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"not a shape: `{shape}`", where="--shape", allowed="such as 3,32,32")
    return sizes


def _save(module: nn.Module, example: Tensor, out: Path) -> None:
    import torch

    from hwsearch.model.pt2 import save_pt2
    from hwsearch.store import atomic_write

    if out.suffix == ".pt2":
        save_pt2(module, example, out)
        return
    with atomic_write(out) as stream:
        torch.save(module.state_dict(), stream)


def _print(before: nn.Module, after: nn.Module, difference: float, layers: tuple[LayerHealth, ...], out: Path) -> None:
    fragile = [layer.name for layer in layers if layer.fragile]
    facts = {
        "convolutions": f"{_convolutions(before)} -> {_convolutions(after)}",
        "parameters": f"{_parameters(before)} -> {_parameters(after)}",
        "difference": f"{difference:.1e} of the largest output",
        "fragile": ", ".join(fragile),
        "written": str(out),
    }
    if flags().json:
        print_json({**facts, "difference": difference, "fragile": fragile})
        return
    print_facts(facts)
    if fragile:
        note("fragile layers lose accuracy below 8 bits; training in the form `qarepvgg` avoids it")


def _convolutions(module: nn.Module) -> int:
    from torch import nn

    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
