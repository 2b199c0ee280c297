"""The single changes of a space: every choice that differs from the original in one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwsearch.model.divergence import Divergence
from hwsearch.search.effects.effects import EVERYWHERE, Effect, Kind, Value
from hwsearch.space.space import decode
from hwsearch.types import PRECISIONS, Candidate, SearchSpace, SourceModel

WIDTHS = 3
"""Widths tried per group, besides the full one; those between are interpolated."""


@dataclass(frozen=True, slots=True)
class Change:
    """One choice that differs from the original, and the candidate that differs in nothing else."""

    kind: Kind
    name: str
    value: Value
    candidate: Candidate

    def effect(self, loss: float, sigma: float, problem: str | None = None) -> Effect:
        """What this change was found to do."""
        return Effect(kind=self.kind, name=self.name, value=self.value, loss=loss, sigma=sigma, problem=problem)

    def between(self, added: Divergence) -> Effect:
        """The same, from what it adds to the divergence of each example."""
        return self.effect(max(0.0, added.mean), added.standard_error)


def changes(space: SearchSpace, source: SourceModel) -> list[Change]:
    """Every single change that is measured, in the order of the network; float formats, which hold for all, last."""
    branch_at = {branch.layers[0]: branch.name for branch in source.branches if branch.name in space.droppable}
    found: list[tuple[Kind, str, Value, str, int]] = []
    for layer in (layer.name for layer in source.layers):
        if layer in branch_at:
            found.append(("drop", branch_at[layer], 1, f"drop:{branch_at[layer]}", 0))
        widths = space.widths.get(layer, ())
        found += [("keep", layer, widths[i], f"keep:{layer}", i) for i in _positions(widths)]
        narrower = space.precisions[layer][:-1]
        integers = [name for name in narrower if PRECISIONS[name].integer]
        found += [("precision", layer, name, f"precision:{layer}", i) for i, name in enumerate(integers)]
        patterns = enumerate(space.patterns.get(layer, ()))
        found += [("pattern", layer, name, f"pattern:{layer}", i) for i, name in patterns]
    floats = enumerate(space.float_precisions[:-1])
    found += [("precision", EVERYWHERE, name, "float", i) for i, name in floats]
    return [Change(kind, name, value, decode(space, source, {key: i})) for kind, name, value, key, i in found]


def without_loss(space: SearchSpace) -> list[Effect]:
    """The choices that change nothing."""
    chosen: list[tuple[Kind, str, Value]] = [("keep", name, widths[-1]) for name, widths in space.widths.items()]
    chosen += [("precision", name, offered[-1]) for name, offered in space.precisions.items()]
    return [Effect(kind=kind, name=name, value=value, loss=0.0, sigma=0.0) for kind, name, value in chosen]


def _positions(widths: Sequence[int]) -> list[int]:
    """Positions of the widths that are measured: the smallest, and evenly spaced ones below the full width."""
    if not widths:
        return []
    wanted = np.linspace(widths[0], widths[-1], WIDTHS, endpoint=False)
    return sorted({int(np.abs(np.array(widths[:-1]) - width).argmin()) for width in wanted})
