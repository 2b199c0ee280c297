"""Candidates worth knowing before any sampler guesses: one change at a time, in the narrowest precision.

A uniform random draw prunes and drops about half of everything at once and lands far below any useful accuracy. These
few neighbours of the uniform baseline tell a sampler which single changes hurt.
"""

from __future__ import annotations

from hwsearch.space.space import decode, dimensions
from hwsearch.types import Candidate, SearchSpace, SourceModel

WIDTH_FRACTIONS = (0.75, 0.5)


def seeds(space: SearchSpace, source: SourceModel) -> list[Candidate]:
    """Each droppable branch dropped alone, all layers sparse, then all inner widths narrowed, then all widths."""
    narrowest = {d.name: 0 for d in dimensions(space) if d.name.startswith("precision:") or d.name == "float"}
    inner = [group.name for group in source.groups if group.kind == "inner" and group.name in space.widths]
    stages = [name for name in space.widths if name not in inner]
    changes: list[dict[str, int]] = [{f"drop:{name}": 0} for name in space.droppable]
    if space.patterns:
        changes.append({f"pattern:{layer}": len(patterns) - 1 for layer, patterns in space.patterns.items()})
    for names in (inner, stages):
        changes += [_narrowed(space, names, fraction) for fraction in WIDTH_FRACTIONS if names]
    return list({c.key: c for c in (decode(space, source, narrowest | change) for change in changes)}.values())


def _narrowed(space: SearchSpace, names: list[str], fraction: float) -> dict[str, int]:
    """For each group, the position of the offered width nearest to `fraction` of the full one."""
    return {
        f"keep:{name}": min(
            range(len(space.widths[name])), key=lambda i: abs(space.widths[name][i] - fraction * space.widths[name][-1])
        )
        for name in names
    }
