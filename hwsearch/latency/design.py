"""Which models to measure: those that tell most about the candidates a search will ask for.

Random candidates and windows of such are drafted without weights; of these, one after the other is chosen that lowers
the expected error over a sample of whole candidates most (greedy A-optimal design under the prior of `fit`).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from hwsearch.backends.flow import read_flow
from hwsearch.backends.rewrite import Graph
from hwsearch.latency.campaign import Job
from hwsearch.latency.fit import Matrix, Spread, design_matrix
from hwsearch.latency.grid import Axes, axes_of, features, thinned
from hwsearch.latency.kernels import Column, Kind, Node, Unit, Width, compiled_units
from hwsearch.latency.micro import MicroModel, chain, pieces, plausible_ranges, repeatable
from hwsearch.latency.network import NetworkUnits
from hwsearch.latency.plan import Shapes, read_plan
from hwsearch.model.channels import take_channels
from hwsearch.model.graph import Network
from hwsearch.model.template import Parameters, Template, folded_parameters
from hwsearch.space.space import baselines, decode, dimensions
from hwsearch.types import Candidate, SearchSpace

MOST_WIDTHS = 8  # nodes on each axis of a grid
LONGEST = 3  # pieces in a window
REPEATS = (1, 4)
ROUGH = (1.0, 1e-3, 3e-4, 3e-5, 3e-5, 0.0)  # µs per feature of `grid.features`: enough to plan with
WHOLE_ERROR, PART_ERROR = 0.01, 0.025  # of a latency that no sum of units explains: a part runs in other company
REFERENCES, REFERENCE_SEED = 8, 30_000
INTEGER_SHARES = (0.0, 0.1, 0.5, 0.5, 0.5, 0.9, 1.0)  # of the layers, in the candidates drawn


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that could be measured.

    Attributes:
        candidate: What it is, or what it is a part of.
        counts: Its units.
        window: First piece, number of pieces, and how often these are repeated; None for the whole candidate.
    """

    candidate: Candidate
    counts: Mapping[Column, float]
    window: tuple[int, int, int] | None = None

    @property
    def error(self) -> float:
        """Relative standard error of the sum of its units."""
        return WHOLE_ERROR if self.window is None else PART_ERROR


class Drawer:
    """Draws candidates of a space, and small models out of them.

    Args:
        network: The traced original.
        space: Candidates come from here.
        reader: Of the same network.
        seed: Of every draw.
    """

    def __init__(self, network: Network, space: SearchSpace, reader: NetworkUnits, seed: int = 0) -> None:
        self._source, self._space, self._reader = network.source, space, reader
        self._random = random.Random(seed)  # noqa: S311 - a draw, not a secret
        self._parameters = folded_parameters(network.module, network.template.folded)
        self.widths = {name: thinned(widths, MOST_WIDTHS) for name, widths in space.widths.items()}
        self._coarse = replace(space, widths=self.widths)

    def candidate(self, *, any_width: bool = False) -> Candidate:
        """A random candidate, from all floating point to all quantised; on the grid's widths unless `any_width`."""
        space = self._space if any_width else self._coarse
        share = self._random.choice(INTEGER_SHARES)
        numbers = {}
        for dimension in dimensions(space):
            number = self._random.randrange(dimension.size)
            if dimension.name.startswith("precision:"):
                integer = self._random.random() < share
                number = self._random.randrange(dimension.size - 1) if integer else dimension.size - 1
            numbers[dimension.name] = number
        return decode(space, self._source, numbers)

    def bound(self, candidate: Candidate) -> tuple[Template, onnx.ModelProto, Shapes]:
        """The candidate as a float model; which channels stay makes no difference to its latency."""
        template, parameters = self._reader.without(candidate.dropped), self._pruned(candidate)
        return template, template.bind(parameters), template.shapes(parameters=parameters)

    def parts(self, candidates: int, windows: int) -> list[Draft]:
        """Windows of random candidates."""
        return [draft for _ in range(candidates) for draft in self._windows(self.candidate(), windows)]

    def whole(self, candidate: Candidate) -> Draft:
        """A whole candidate."""
        return Draft(candidate, self._reader.counts(candidate))

    def job(self, draft: Draft) -> Job:
        """A draft with weights, ready to be built and measured."""
        template, model, shapes = self.bound(draft.candidate)
        if draft.window is None:
            ranges = plausible_ranges(model.graph)
            return Job(model, draft.candidate.precision, draft.candidate.float_precision, ranges)
        first, length, repeats = draft.window
        parts = pieces(model.graph, template.layers)[first : first + length] * repeats
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        micro = chain(model.graph, constants, shapes, template.layers, parts)
        precision = {name: draft.candidate.precision[layer] for name, layer in micro.layers.items()}
        return Job(micro.model(), precision, draft.candidate.float_precision, micro.ranges)

    def _windows(self, candidate: Candidate, windows: int) -> list[Draft]:
        template = self._reader.without(candidate.dropped)
        shapes = template.shapes(parameters=self._pruned(candidate))
        cut = pieces(template.skeleton.graph, template.layers)
        drafts = []
        for _ in range(windows):
            first = self._random.randrange(len(cut))
            parts = cut[first : first + self._random.randint(1, LONGEST)]
            inner = first + len(parts) < len(cut)
            repeats = self._random.choice(REPEATS) if inner and repeatable(shapes, parts) else 1
            graph, constants = template.skeleton.graph, template.initializers
            micro = chain(graph, constants, shapes, template.layers, parts * repeats)
            drafts.append(Draft(candidate, self._counts(candidate, micro), (first, len(parts), repeats)))
        return drafts

    def _counts(self, candidate: Candidate, micro: MicroModel) -> Counter[Column]:
        precision = {name: candidate.precision[layer] for name, layer in micro.layers.items()}
        flow = read_flow(Graph(micro.skeleton, micro.constants))
        plan = read_plan(flow, micro.skeleton.graph, micro.layers, micro.shapes, None)
        quantized = self._reader.rule(flow, precision)
        units = compiled_units(plan, quantized, precision, candidate.float_precision)
        return Counter((unit.kind, (unit.inputs.fixed, unit.outputs.fixed)) for unit in units)

    def _pruned(self, candidate: Candidate) -> Parameters:
        kept = {name: range(count) for name, count in candidate.keep.items()}
        return take_channels(self._parameters, self._source.groups, kept)


def references(network: Network, space: SearchSpace, reader: NetworkUnits) -> list[Candidate]:
    """What every campaign measures, to tell a slower machine from a wrong table: uniform settings and some others."""
    drawer = Drawer(network, space, reader, REFERENCE_SEED)
    return [*baselines(space).values(), *(drawer.candidate() for _ in range(REFERENCES))]


def reachable_axes(
    units: Iterable[Unit], drafts: Sequence[Draft], widths: Mapping[str, Sequence[int]], full: Mapping[str, int]
) -> dict[Kind, Axes]:
    """The channel counts every kind of unit can have on the grid of `widths` of the prune groups, and in drafts."""
    nodes: dict[Kind, set[Node]] = defaultdict(set)
    for unit in units:
        inputs, outputs = _values(unit.inputs, widths, full), _values(unit.outputs, widths, full)
        nodes[unit.kind].update((a, b) for a in inputs for b in outputs)
    for draft in drafts:
        for kind, node in draft.counts:
            nodes[kind].add(node)
    return {kind: axes_of(kind, found) for kind, found in nodes.items()}


def _values(width: Width, widths: Mapping[str, Sequence[int]], full: Mapping[str, int]) -> list[int]:
    """Channel counts of `width` when all its groups move together along their grids."""
    grids = [widths.get(name, (full[name],)) for name, _ in width.groups]
    steps = max((len(grid) for grid in grids), default=1)
    keeps = (
        {name: grid[min(i, len(grid) - 1)] for (name, _), grid in zip(width.groups, grids, strict=True)}
        for i in range(steps)
    )
    lowest = width.channels({name: grid[0] for (name, _), grid in zip(width.groups, grids, strict=True)})
    highest = width.channels({name: grid[-1] for (name, _), grid in zip(width.groups, grids, strict=True)})
    return sorted({lowest, highest, *(width.channels(keep) for keep in keeps)})


def choose(
    drafts: Sequence[Draft], sample: Sequence[Mapping[Column, float]], axes: Mapping[Kind, Axes], most: int
) -> list[Draft]:
    """At most `most` drafts, the most telling first about candidates of which `sample` holds the units."""
    columns = [(kind, node) for kind, axis in axes.items() for node in axis.nodes()]
    guess = np.array([_rough(kind, node) for kind, node in columns])
    design = design_matrix([draft.counts for draft in drafts], axes, columns)
    asked = design_matrix(sample, axes, columns)
    asked = asked / (asked @ guess)[:, None]
    noise = (np.array([draft.error for draft in drafts]) * (design @ guess)) ** 2
    everything = np.concatenate([design, asked])
    covariance = design @ Spread(columns, guess).times(everything.T)
    return [drafts[i] for i in _greedy(covariance, noise, most)]


def _greedy(covariance: Matrix, noise: Matrix, most: int) -> list[int]:
    """Rows to observe, one by one, each lowering the variance of the last columns most.

    Args:
        covariance: Of n observable sums with themselves (first n columns) and with what is asked (the others).
        noise: Variance of each observation, [n].
        most: How many to choose.
    """
    n = len(noise)
    picked: list[int] = []
    for _ in range(min(most, n)):
        total = np.diag(covariance) + noise
        gain = (covariance[:, n:] ** 2).sum(axis=1) / total
        gain[picked] = -1.0
        best = int(gain.argmax())
        picked.append(best)
        covariance = covariance - np.outer(covariance[:, best], covariance[best] / total[best])
    return picked


def _rough(kind: Kind, node: Node) -> float:
    return sum(price * value for price, value in zip(ROUGH, features(kind, node), strict=False))
