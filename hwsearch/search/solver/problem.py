"""The discrete problem a search poses: one value per variable, least loss, limited use of resources.

Loss and use are sums of terms, each a table over a few variables (a graphical model, also called a weighted constraint
network). Nothing here knows of networks or devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import ConfigError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)

CURVE, SHORT = 500, 10
"""Points of typical curves: of several variables, and of the values of one that are worth their price."""

AT_ONCE = 100
"""Entries of tables that are worked off in the time of one shift of a curve."""


@dataclass(frozen=True, eq=False)
class Term:
    """Loss and use of resources as tables over some variables.

    Attributes:
        variables: One per axis of the tables; at least one.
        loss: Infinite where the combination is forbidden.
        use: Resource -> table of the same shape; a resource left out is not used.
    """

    variables: tuple[str, ...]
    loss: Floats
    use: Mapping[str, Floats]

    def spent(self, resource: str) -> Floats:
        """Use of a resource; infinite where the combination is forbidden."""
        return np.where(np.isfinite(self.loss), self.use.get(resource, 0.0), np.inf)


@dataclass(frozen=True, eq=False)
class Problem:
    """Variables with the number of their values, and the terms to add up."""

    sizes: Mapping[str, int]
    terms: tuple[Term, ...]

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Variables in the order in which they are best eliminated."""
        scopes = [term.variables for term in self.terms]
        orders = [elimination_order(self.sizes, scopes, sweep=sweep) for sweep in (False, True)]
        return min(orders, key=lambda order: sum(self._efforts(order)))

    @cached_property
    def effort(self) -> int:
        """About how often two curves are joined by dynamic programming."""
        return sum(self._efforts(self.order))

    def loss(self, choices: Mapping[str, Integers]) -> Floats:
        """Loss of assignments, each variable an array of values."""
        return _added(self.terms, choices, lambda term: term.loss)

    def use(self, resource: str, choices: Mapping[str, Integers]) -> Floats:
        """Use of a resource by assignments, each variable an array of values."""
        return _added(self.terms, choices, lambda term: term.spent(resource))

    def _efforts(self, order: Iterable[str]) -> Iterator[int]:
        """Shifts of a curve that it takes to eliminate each variable; tables without curves cost next to nothing."""
        tables = [(frozenset(term.variables), 1) for term in self.terms]
        for name in order:
            bucket = [table for table in tables if name in table[0]]
            scope = frozenset({name}).union(*(variables for variables, _ in bucket))
            cells, points = prod(self.sizes[v] for v in scope), sorted(count for _, count in bucket)
            simple = not points or points[-1] == 1
            left = min(self.sizes[name], SHORT) if simple else CURVE
            tables = [table for table in tables if name not in table[0]] + [(scope - {name}, left)]
            yield cells // AT_ONCE if simple else cells * prod(points[:-1])


@dataclass(frozen=True)
class Solution:
    """One value per variable, with its loss and what it uses of each resource."""

    choices: dict[str, int]
    loss: float
    use: dict[str, float]


def solution(problem: Problem, choices: Mapping[str, int], resources: Iterable[str]) -> Solution:
    """The record of an assignment."""
    values = {name: np.array([value]) for name, value in choices.items()}
    use = {resource: float(problem.use(resource, values)[0]) for resource in resources}
    return Solution(choices=dict(choices), loss=float(problem.loss(values)[0]), use=use)


def minimum(problem: Problem, cost: Callable[[Term], Floats]) -> dict[str, int]:
    """The assignment with the least sum of `cost` over all terms, by eliminating one variable after the other.

    Raises:
        ConfigError: every combination is forbidden.
    """
    tables = [(term.variables, cost(term)) for term in problem.terms]
    steps: list[tuple[str, tuple[str, ...], NDArray[np.intp]]] = []
    for name in problem.order:
        bucket = [table for table in tables if name in table[0]]
        scope = (*dict.fromkeys(v for variables, _ in bucket for v in variables if v != name), name)
        total = np.zeros([problem.sizes[v] for v in scope])
        for variables, table in bucket:
            total = total + aligned(table, variables, scope)
        tables = [table for table in tables if name not in table[0]] + [(scope[:-1], total.min(axis=-1))]
        steps.append((name, scope[:-1], total.argmin(axis=-1)))
    if not np.isfinite(sum(float(table) for _, table in tables)):
        raise ConfigError("no combination of choices is allowed")
    choices: dict[str, int] = {}
    for name, scope, best in reversed(steps):
        choices[name] = int(best[tuple(choices[v] for v in scope)])
    return choices


def aligned(table: NDArray[Number], variables: Sequence[str], scope: Sequence[str]) -> NDArray[Number]:
    """`table` over `variables` as a view over the variables `scope`, of size 1 where it does not depend on one.

    Axes of `table` beyond its variables stay last.
    """
    present = [v for v in scope if v in variables]
    more = list(range(len(variables), table.ndim))
    moved = table.transpose([*(list(variables).index(v) for v in present), *more])
    return moved[tuple(slice(None) if v in variables else None for v in scope)]


def elimination_order(sizes: Mapping[str, int], scopes: Sequence[Sequence[str]], *, sweep: bool) -> tuple[str, ...]:
    """Every variable, each time the one whose removal ties the fewest others together (the min-fill heuristic).

    Variables of one term alone come first.

    Args:
        sizes: Variable -> number of its values.
        scopes: Variables of each term.
        sweep: Whether to go on where it left off even if that ties more together, so that a chain is followed from one
            end to the other.
    """
    near: dict[str, set[str]] = {name: set() for name in sizes}
    for scope in scopes:
        for name in scope:
            near[name].update(set(scope) - {name})
    uses = Counter(name for scope in scopes for name in scope)
    efforts = {name: _fill(name, near, sizes) for name in near}
    order: list[str] = []
    touched: set[str] = set()
    while near:
        name = min(
            near,
            key=lambda v: (uses[v] > 1, (sweep and v not in touched), efforts[v][0], v not in touched, efforts[v][1]),
        )
        order.append(name)
        touched = near.pop(name)
        for other in touched:
            near[other] |= touched
            near[other] -= {name, other}
        for other in touched.union(*(near[v] for v in touched)):
            efforts[other] = _fill(other, near, sizes)
    return tuple(order)


def _fill(name: str, near: Mapping[str, set[str]], sizes: Mapping[str, int]) -> tuple[int, int]:
    """How many pairs the removal of a variable ties together (twice), and the size of the table that takes."""
    pairs = sum(len(near[name] - near[other]) - 1 for other in near[name])
    return pairs, prod(sizes[other] for other in near[name]) * sizes[name]


def _added(terms: Sequence[Term], choices: Mapping[str, Integers], table: Callable[[Term], Floats]) -> Floats:
    length = len(next(iter(choices.values()))) if choices else 1
    total = np.zeros(length)
    for term in terms:
        total = total + table(term)[tuple(choices[name] for name in term.variables)]
    return total
