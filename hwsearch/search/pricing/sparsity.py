"""How much of a network can go at which loss: the least sum of sensitivities at every sparsity.

Each prune group and each droppable branch is a variable of the solver's problem, and what is left of a layer (channels,
parameters or multiply-accumulates) a term over the groups it reads and writes. Sensitivities are smoothed first so that
narrower never costs less, hence the loss rises with the sparsity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hwsearch.latency.grid import thinned
from hwsearch.search.pricing.counts import LayerCounts, layer_counts
from hwsearch.search.pricing.prices import groups_in
from hwsearch.search.pricing.segments import DROPPED, Loss
from hwsearch.search.solver.dynamic import Frontier
from hwsearch.search.solver.integer import IntegerProgram
from hwsearch.search.solver.problem import Floats, Problem, Term
from hwsearch.search.solver.solve import MOST_EFFORT, trade_off
from hwsearch.types import Branch, Candidate, SearchSpace, SourceModel

Metric = Literal["channels", "params", "macs"]

LEFT, MINUS = "left", "minus"
"""The resource: what is left of the network, in the unit of the metric; and its negative, to limit it from below."""

STEPS = 32
"""Sparsities between none and the wanted one that are told apart."""

Numbers = dict[str, int]
"""Positions of choices, as `decode` takes them."""

WHOLE = "whole"
"""A variable with one value, for layers that no choice touches."""

MOST_WIDTHS = (12, 8, 5, 3)
"""Channel counts per prune group, evenly spread: fewer if the problem is too hard."""

KEPT = 1
"""Value of the variable of a branch that stays, as `decode` takes it."""


@dataclass(frozen=True, eq=False)
class SparsityCurve:
    """The least harmful ways to prune, from nothing to as much as possible.

    Attributes:
        space: What was chosen from: the space with fewer widths.
        sparsity: Share that is gone, ascending from 0.
        loss: Sum of sensitivities, ascending.
    """

    space: SearchSpace
    sparsity: Floats
    loss: Floats
    _found: Frontier
    _whole: float

    def __len__(self) -> int:
        return len(self.sparsity)

    def numbers(self, row: int) -> Numbers:
        """What `decode` makes the pruned network of, every layer in its widest format."""
        return dict(self._found[len(self) - 1 - row].choices)

    def nearest(self, goal: float) -> int:
        """The row whose sparsity is nearest to `goal`."""
        return int(np.abs(self.sparsity - goal).argmin())

    def at(self, goal: float, tolerance: float) -> Numbers:
        """The same of the least harmful network within `tolerance` of `goal`; of the nearest row if there is none.

        That may be none of the rows: where more can go at less loss, rows skip what lies between.
        """
        row = self.nearest(goal)
        if abs(self.sparsity[row] - goal) <= tolerance:
            return self.numbers(row)
        least, most = (self._whole * (1 - goal + sign * tolerance) for sign in (-1, 1))
        found = IntegerProgram(self._found.problem).least_loss({LEFT: most, MINUS: -least})
        return self.numbers(row) if found is None else dict(found.choices)

    def steps(self, goal: float | None, tolerance: float) -> list[Numbers]:
        """The same of networks from the whole one up to that `at` the goal, or up to the end of the curve."""
        wanted = self.sparsity[-1] if goal is None else goal
        last = self.numbers(len(self) - 1) if goal is None else self.at(goal, tolerance)
        rows = sorted({self.nearest(wanted * step / STEPS) for step in range(STEPS)})
        before = [self.numbers(row) for row in rows if row == 0 or self.sparsity[row] < wanted - tolerance]
        return before if before[-1] == last else [*before, last]


def sparsity_curve(source: SourceModel, space: SearchSpace, loss: Loss, metric: Metric) -> SparsityCurve:
    """The least loss at every sparsity of one metric.

    Args:
        source: The network.
        space: Offers widths and branches to drop.
        loss: Of a single choice, e.g. of `Sensitivity.loss`.
        metric: What sparsity is a share of.
    """
    for most in MOST_WIDTHS:
        coarse = replace(space, widths={name: thinned(widths, most) for name, widths in space.widths.items()})
        problem = _problem(source, coarse, loss, metric)
        if problem.effort <= MOST_EFFORT:
            break
    whole = sum(_left(counts, metric, _full(source)) for counts in layer_counts(source).values())
    found = trade_off(problem, LEFT, {})
    return SparsityCurve(coarse, 1 - found.use[::-1] / whole, found.loss[::-1], found, whole)


def sparsity_of(candidate: Candidate, source: SourceModel, metric: Metric) -> float:
    """Share of a network's channels, parameters or multiply-accumulates that a candidate does without."""
    counts, full = layer_counts(source), _full(source)
    gone = {layer for branch in source.branches if branch.name in candidate.dropped for layer in branch.layers}
    left = sum(_left(layer, metric, full | candidate.keep) for name, layer in counts.items() if name not in gone)
    return 1 - left / sum(_left(layer, metric, full) for layer in counts.values())


def _problem(source: SourceModel, space: SearchSpace, loss: Loss, metric: Metric) -> Problem:
    droppable = [branch for branch in source.branches if branch.name in space.droppable]
    sizes = {WHOLE: 1} | {f"keep:{name}": len(widths) for name, widths in space.widths.items()}
    sizes |= {f"drop:{branch.name}": 2 for branch in droppable}
    return Problem(sizes, (*_losses(space, droppable, loss), *_amounts(source, space, droppable, metric)))


def _losses(space: SearchSpace, droppable: Sequence[Branch], loss: Loss) -> Iterator[Term]:
    """What each choice hurts; inside a dropped branch the only choice is the one that changes nothing."""
    for group, widths in space.widths.items():
        hurt = [*(loss("keep", group, width) for width in widths[:-1]), 0.0]
        yield _unless_dropped(f"keep:{group}", hurt, -1, [b for b in droppable if group in b.groups])
    for branch in droppable:
        around = [b for b in droppable if b is not branch and set(branch.layers) < set(b.layers)]
        yield _unless_dropped(f"drop:{branch.name}", [loss("drop", branch.name, DROPPED), 0.0], KEPT, around)


def _unless_dropped(variable: str, hurt: Sequence[float], unchanged: int, branches: Sequence[Branch]) -> Term:
    """Losses of a variable's values; where a branch around it is dropped, `unchanged` alone is allowed, at no loss."""
    table = np.full([len(hurt), *[2] * len(branches)], np.inf)
    table[unchanged] = 0.0
    stays: tuple[Any, ...] = (slice(None), *[KEPT] * len(branches))
    table[stays] = hurt
    return Term((variable, *(f"drop:{branch.name}" for branch in branches)), table, {})


def _amounts(source: SourceModel, space: SearchSpace, droppable: Sequence[Branch], metric: Metric) -> Iterator[Term]:
    """What is left of each layer, over the groups it reads and writes and the branches it is in."""
    full = _full(source)
    for name, counts in layer_counts(source).items():
        groups = [group for group in space.widths if group in groups_in(counts.inputs, counts.outputs)]
        branches = [f"drop:{branch.name}" for branch in droppable if name in branch.layers]
        left = np.zeros([len(space.widths[group]) for group in groups])
        for index in np.ndindex(*left.shape):
            keep = {group: space.widths[group][i] for group, i in zip(groups, index, strict=True)}
            left[index] = _left(counts, metric, full | keep)
        table = np.zeros([*left.shape, *[2] * len(branches)])
        stays: tuple[Any, ...] = (..., *[KEPT] * len(branches))
        table[stays] = left
        variables = (*(f"keep:{group}" for group in groups), *branches) or (WHOLE,)
        table = table.reshape(table.shape or 1)
        yield Term(variables, np.zeros(table.shape), {LEFT: table, MINUS: -table})


def _left(counts: LayerCounts, metric: Metric, keep: Mapping[str, int]) -> float:
    """What a layer has at some channel counts of the prune groups."""
    inputs, outputs = counts.inputs.channels(keep), counts.outputs.channels(keep)
    if metric == "channels":
        return outputs
    if metric == "macs":
        return counts.macs(inputs, outputs)
    return counts.taps * outputs * (1 if counts.op == "depthwise" else inputs) + outputs


def _full(source: SourceModel) -> dict[str, int]:
    return {group.name: group.channels for group in source.groups}
