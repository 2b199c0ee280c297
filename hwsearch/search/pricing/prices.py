"""What units cost, as arrays over the widths they depend on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import numpy as np

from hwsearch.latency.kernels import Kind, Node, Unit, Width
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.predictor import CostTable, Predictor, family_of
from hwsearch.latency.table import LatencyTable
from hwsearch.model.graph import Network
from hwsearch.search.pricing.segments import format_name, format_parts
from hwsearch.search.solver.problem import Floats, aligned
from hwsearch.types import Candidate, Target

RIDGE = 1e-6
"""Pull of a factor towards 1, relative to what a whole model tells about it."""


@dataclass(frozen=True)
class PriceList:
    """What prices are made of.

    Attributes:
        units: Of a candidate.
        cost_us: Of a unit at its channel counts.
        predict: Latency of a whole candidate and its standard error, in ms: what counts in the end.
    """

    units: Callable[[Candidate], Iterable[Unit]]
    cost_us: Callable[[Kind, Node], float]
    predict: Callable[[Candidate], tuple[float, float]]


class Prices:
    """Prices of units that add up to what is predicted for whole candidates.

    A predictor may correct whole families of units by what it has learnt since. So each family has a factor, fitted to
    the predictions of some candidates; as long as nothing is learnt, all factors are 1.

    Args:
        listed: Where costs come from.
        widths: Prune group -> channel counts; the order of an array's entries.
        full: Prune group -> all its channels.
        probes: Candidates in which all families occur.
    """

    def __init__(
        self,
        listed: PriceList,
        widths: Mapping[str, Sequence[int]],
        full: Mapping[str, int],
        probes: Sequence[Candidate],
    ) -> None:
        self._listed, self._widths, self._full, self._probes = listed, widths, full, probes
        self._array = lru_cache(maxsize=None)(self._costs)
        totals = [self._totals(candidate) for candidate in probes]
        self._families = sorted({family for found in totals for family in found})
        self._shares = np.array([[found.get(family, 0.0) for family in self._families] for found in totals])
        self._factors = np.ones(len(self._families))

    def refresh(self) -> bool:
        """Follow what the predictor has learnt; whether any price has changed by more than a thousandth."""
        predicted = np.array([self._listed.predict(candidate)[0] * 1e3 for candidate in self._probes])
        shares = self._shares / predicted[:, None]
        gram = shares.T @ shares + RIDGE * np.eye(len(self._families))
        factors = 1 + np.linalg.solve(gram, shares.T @ (1 - shares.sum(axis=1)))
        changed = bool(np.abs(factors - self._factors).max() > 1e-3)
        if changed:
            self._factors = factors
        return changed

    def table(self, units: Counter[Unit], axes: Sequence[str]) -> Floats:
        """Latency in ms of some units, at all widths of the groups `axes` [*number of widths].

        Groups that are not among the axes have all their channels.
        """
        factor = dict(zip(self._families, self._factors.tolist(), strict=True))
        parts = []
        for unit, count in units.items():
            groups = tuple(group for group in groups_of(unit) if group in axes)
            worth = count * factor.get(family_of(unit.kind), 1.0) / 1e3
            parts.append(worth * aligned(self._array(unit, groups), groups, axes))
        return reduce(np.add, parts, np.zeros([len(self._widths[group]) for group in axes]))

    def _costs(self, unit: Unit, groups: tuple[str, ...]) -> Floats:
        """Cost in µs at all widths of some groups."""
        shape = [len(self._widths[group]) for group in groups]
        found = np.empty(shape)
        for index in np.ndindex(*shape):
            chosen = {group: self._widths[group][i] for group, i in zip(groups, index, strict=True)}
            found[index] = self._cost(unit, {**self._full, **chosen})
        return found

    def _cost(self, unit: Unit, keep: Mapping[str, int]) -> float:
        return self._listed.cost_us(unit.kind, (unit.inputs.channels(keep), unit.outputs.channels(keep)))

    def _totals(self, candidate: Candidate) -> dict[tuple[str, ...], float]:
        """Cost in µs per family."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for unit in self._listed.units(candidate):
            found[family_of(unit.kind)] += self._cost(unit, {**self._full, **candidate.keep})
        return found


def groups_of(unit: Unit) -> tuple[str, ...]:
    """Prune groups that a unit's channel counts depend on."""
    return groups_in(unit.inputs, unit.outputs)


def groups_in(*widths: Width) -> tuple[str, ...]:
    """Prune groups that some channel counts depend on."""
    return tuple(dict.fromkeys(name for width in widths for name, _ in width.groups))


def in_format(units: Counter[Unit], narrow: str, wide: str) -> Counter[Unit]:
    """The same units when float layers compute in `narrow` in place of `wide`."""
    if narrow == wide:
        return units
    found: Counter[Unit] = Counter()
    for unit, count in units.items():
        precision, pattern = format_parts(unit.kind.precision)
        kind = replace(unit.kind, precision=format_name(narrow, pattern)) if precision == wide else unit.kind
        found[replace(unit, kind=kind)] += count
    return found


def table_prices(table: LatencyTable, network: Network, target: Target, predictor: Predictor) -> PriceList:
    """Prices from the latency table that `predictor` was made of."""
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    costs = CostTable(table.entries)
    return PriceList(reader.units, lambda kind, node: costs.cost(kind, node).latency_us, predictor)
