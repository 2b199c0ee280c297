"""Latency of a whole candidate from the costs of its units, corrected by whole models measured since.

``T = Σ cost of units · (1 + correction of their class)``; the corrections start at zero and are learnt by recursive
ridge regression from every whole model that is measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hwsearch.errors import ConfigError
from hwsearch.latency.fit import Entry
from hwsearch.latency.grid import Axes, axes_of
from hwsearch.latency.kernels import CALL_UNIT, LAYER_KINDS, Column, Kind, Node, Situation, Unit, units_of
from hwsearch.latency.network import NetworkUnits
from hwsearch.latency.residual import Residual
from hwsearch.types import Candidate

CORRECTED = (*LAYER_KINDS, "Add", "quantize", "dequantize")  # each with its precision; all else is one class
MOST_FAMILIES = 32


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
class _Priced:
    """What an operation compiles to in one situation, and what that has cost at the widths asked so far."""

    units: tuple[Unit, ...]
    groups: tuple[str, ...]
    known: dict[tuple[int, ...], list[_Cost]] = field(default_factory=dict)


_Cost = tuple[int, float, int, float]
"""Family of a unit, its latency, the number of the entry it comes from, and that entry's standard error."""


class Predictor:
    """Callable: candidate -> (latency in ms, standard error in ms).

    Args:
        costs: The table.
        reader: Of the network and the backend.
        model_error: Relative standard error of a whole model beyond that of its entries.
    """

    def __init__(self, costs: CostTable, reader: NetworkUnits, model_error: float) -> None:
        self._costs, self._reader = costs, reader
        self._priced: dict[Situation, _Priced] = {}
        self._families: dict[tuple[str, ...], int] = {}
        self._entries: dict[Column, int] = {}
        self._residual = Residual(MOST_FAMILIES, model_error)
        self._call = self._prices(_priced([CALL_UNIT]), ())

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
        errors: dict[int, float] = defaultdict(float)
        costs = list(self._call)
        for situation in self._reader.situations(candidate):
            priced = self._priced.get(situation)
            if priced is None:
                priced = self._priced[situation] = _priced(units_of(situation))
            widths = tuple([keep[name] for name in priced.groups])
            costs += priced.known.get(widths) or self._prices(priced, widths)
        for family, latency, entry, sigma in costs:
            totals[family] += latency
            errors[entry] += sigma
        return totals, sum([error * error for error in errors.values()])

    def _prices(self, priced: _Priced, widths: tuple[int, ...]) -> list[_Cost]:
        keep = dict(zip(priced.groups, widths, strict=True))
        found = []
        for unit in priced.units:
            column = (unit.kind, (unit.inputs.channels(keep), unit.outputs.channels(keep)))
            entry = self._costs.cost(*column)
            family = self._families.setdefault(family_of(unit.kind), min(len(self._families), MOST_FAMILIES - 1))
            number = self._entries.setdefault(column, len(self._entries))
            found.append((family, entry.latency_us, number, entry.sigma_us))
        priced.known[widths] = found
        return found


def _priced(units: Iterable[Unit]) -> _Priced:
    units = tuple(units)
    groups = (name for unit in units for width in (unit.inputs, unit.outputs) for name, _ in width.groups)
    return _Priced(units, tuple(dict.fromkeys(groups)))


def family_of(kind: Kind) -> tuple[str, ...]:
    """The class of units that share a correction."""
    return (kind.unit if kind.unit in CORRECTED else "other", kind.precision)
