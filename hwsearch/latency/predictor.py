"""Latency of a whole candidate from the costs of its units, corrected by whole models measured since.

``T = Σ cost of units · (1 + correction of their class)``; the corrections start at zero and are learnt by recursive
ridge regression from every whole model that is measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from hwsearch.errors import ConfigError
from hwsearch.latency.fit import Entry
from hwsearch.latency.grid import Axes, axes_of
from hwsearch.latency.kernels import LAYER_KINDS, Kind, Node, Unit
from hwsearch.latency.network import NetworkUnits
from hwsearch.latency.residual import Residual
from hwsearch.types import Candidate

CORRECTED = (*LAYER_KINDS, "Add", "quantize", "dequantize")  # each with its precision; all else is one class
MOST_FAMILIES = 32
MOST_PATTERNS = 4096  # combinations of dropped branches and precisions kept in memory


class CostTable:
    """Cost of any unit within the channel counts of a table's entries."""

    def __init__(self, entries: Mapping[Kind, Mapping[Node, Entry]]) -> None:
        self._entries = entries
        self._axes: dict[Kind, Axes] = {kind: axes_of(kind, nodes) for kind, nodes in entries.items()}

    def cost(self, kind: Kind, node: Node) -> Entry:
        """The entry at `node`, or what its neighbours make of it.

        Raises:
            ConfigError: the table does not reach that far.
        """
        entries = self._entries.get(kind)
        if entries is not None and node in entries:
            return entries[node]
        weights = self._axes[kind].weights(node) if entries is not None else None
        if entries is None or weights is None or any(near not in entries for near in weights):
            raise ConfigError(
                f"the latency table has no entry for {kind}, {node[0]} -> {node[1]} channels",
                hint="build the table for this study with `hwsearch table build`, or measure",
            )
        near = [(weight, entries[corner]) for corner, weight in weights.items()]
        return Entry(
            sum(w * e.latency_us for w, e in near), sum(w * e.sigma_us for w, e in near), min(e.models for _, e in near)
        )


@dataclass(slots=True)
class _PricedUnit:
    """A unit of the network and what it has cost at the widths asked so far."""

    unit: Unit
    groups: tuple[str, ...]
    family: int
    known: dict[tuple[int, ...], tuple[Node, float, float]] = field(default_factory=dict)


class Predictor:
    """Callable: candidate -> (latency in ms, standard error in ms).

    Args:
        costs: The table.
        reader: Of the network and the backend.
        model_error: Relative standard error of a whole model beyond that of its entries.
    """

    def __init__(self, costs: CostTable, reader: NetworkUnits, model_error: float) -> None:
        self._costs, self._reader = costs, reader
        self._patterns: dict[object, list[_PricedUnit]] = {}
        self._units: dict[Unit, _PricedUnit] = {}
        self._families: dict[tuple[str, ...], int] = {}
        self._residual = Residual(MOST_FAMILIES, model_error)

    def __call__(self, candidate: Candidate) -> tuple[float, float]:
        """Latency and its standard error, both in ms.

        Raises:
            ConfigError: the table lacks an entry.
        """
        totals, variance = self._totals(candidate)
        latency, spread = self._residual.apply(totals)
        return latency / 1e3, math.sqrt(variance + spread) / 1e3

    def learn(self, candidate: Candidate, latency_ms: float) -> None:
        """Correct future predictions by what a candidate was measured at."""
        self._residual.learn(self._totals(candidate)[0], latency_ms * 1e3)

    def _totals(self, candidate: Candidate) -> tuple[list[float], float]:
        """Cost in µs per family of units, and the variance due to the entries.

        Errors of one entry used several times add up linearly, those of different entries in squares.
        """
        keep = {**self._reader.full, **candidate.keep}
        totals = [0.0] * MOST_FAMILIES
        errors: dict[tuple[int, Node], float] = defaultdict(float)
        for priced in self._pattern(candidate):
            key = tuple([keep[name] for name in priced.groups])
            node, cost, sigma = priced.known.get(key) or self._price(priced, key, keep)
            totals[priced.family] += cost
            errors[id(priced.unit.kind), node] += sigma
        return totals, sum([error * error for error in errors.values()])

    def _price(self, priced: _PricedUnit, key: tuple[int, ...], keep: Mapping[str, int]) -> tuple[Node, float, float]:
        node = (priced.unit.inputs.channels(keep), priced.unit.outputs.channels(keep))
        entry = self._costs.cost(priced.unit.kind, node)
        priced.known[key] = (node, entry.latency_us, entry.sigma_us)
        return priced.known[key]

    def _pattern(self, candidate: Candidate) -> list[_PricedUnit]:
        """The candidate's units; the same for all candidates that differ in widths only."""
        key = (candidate.dropped, tuple(candidate.precision.items()))
        found = self._patterns.get(key)
        if found is None:
            if len(self._patterns) >= MOST_PATTERNS:
                self._patterns.clear()
            found = self._patterns[key] = [self._priced(unit) for unit in self._reader.units(candidate)]
        return found

    def _priced(self, unit: Unit) -> _PricedUnit:
        if unit not in self._units:
            groups = tuple(dict.fromkeys(name for width in (unit.inputs, unit.outputs) for name, _ in width.groups))
            family = self._families.setdefault(family_of(unit.kind), min(len(self._families), MOST_FAMILIES - 1))
            self._units[unit] = _PricedUnit(unit, groups, family)
        return self._units[unit]


def family_of(kind: Kind) -> tuple[str, ...]:
    """The class of units that share a correction."""
    return (kind.unit if kind.unit in CORRECTED else "other", kind.precision)
