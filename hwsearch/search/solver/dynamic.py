"""Dynamic programming: every trade-off between loss and one resource, in one pass.

Variables are eliminated one after the other (bucket elimination, Dechter 1999). What remains of the eliminated ones is,
for each combination of the variables they were tied to, a curve: the least loss for each amount of the resource. Two
curves join by trying every way to share an amount between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from hwsearch.search.solver.problem import Floats, Integers, Problem, Solution, aligned, minimum, solution

STEPS, FEWER_STEPS = 3000, 1000
"""Amounts of the resource told apart, between the least possible and what the least loss takes."""

EASY = 50_000
"""Effort of a problem beyond which fewer steps are made."""

Choices = dict[str, Integers]


@dataclass(frozen=True, eq=False)
class Frontier:
    """All solutions that no other beats in both loss and use of a resource.

    Attributes:
        use: Ascending.
        loss: Descending.
        choices: Variable -> its value in each solution.
    """

    problem: Problem
    resource: str
    use: Floats
    loss: Floats
    choices: Mapping[str, Integers]

    @staticmethod
    def of(problem: Problem, resource: str, choices: Mapping[str, Integers]) -> Frontier:
        """The frontier among some assignments, each variable an array of values."""
        use, loss = problem.use(resource, choices), problem.loss(choices)
        kept = unbeaten(use, loss)
        return Frontier(problem, resource, use[kept], loss[kept], {v: values[kept] for v, values in choices.items()})

    def __len__(self) -> int:
        return len(self.use)

    def __getitem__(self, index: int) -> Solution:
        return solution(self.problem, {v: int(values[index]) for v, values in self.choices.items()}, [self.resource])

    def within(self, limit: float) -> Solution | None:
        """The solution with the least loss that uses no more than `limit`; None if there is none."""
        fitting = int(np.searchsorted(self.use, limit, side="right"))
        return self[fitting - 1] if fitting else None


def frontier(problem: Problem, resource: str, *, step: float | None = None) -> Frontier:
    """Every trade-off between loss and `resource`.

    Amounts are rounded to multiples of `step` while solutions are compared, and counted exactly in the result: it is
    exact where all amounts are such multiples. The rounding of n terms amounts to about ``sqrt(n / 12)`` steps.

    Args:
        problem: What to solve; time and memory grow with `Problem.effort`.
        resource: The one that is traded.
        step: Default: a 3000th of the range that matters, or a 1000th in a hard problem.

    Raises:
        ConfigError: every combination is forbidden.
    """
    ends = [minimum(problem, lambda term: term.spent(resource)), minimum(problem, lambda term: term.loss)]
    least, most = (solution(problem, end, [resource]).use[resource] for end in ends)
    known = {name: np.array([end[name] for end in ends]) for name in problem.sizes}
    if least < most:
        steps = STEPS if problem.effort <= EASY else FEWER_STEPS
        found = _all(problem, resource, step or (most - least) / steps, most)
        known = {name: np.concatenate([known[name], found[name]]) for name in known}
    return Frontier.of(problem, resource, known)


def unbeaten(use: Floats, loss: Floats) -> Integers:
    """Indices of the points that no other beats, ascending in use; one of equal points."""
    order = np.lexsort((loss, use))
    lowest = np.minimum.accumulate(loss[order])
    return order[np.r_[np.isfinite(lowest[:1]), lowest[1:] < lowest[:-1]]]


@dataclass(frozen=True, eq=False)
class _Curves:
    """A curve for each combination of some variables.

    Attributes:
        loss: [*sizes of the variables, points]; infinite where a curve has fewer points.
        amount: Of the resource, in steps above the least possible; same shape.
        recall: Fills in the values that eliminated variables have at a point of the curve, for arrays of assignments.
        dense: Whether the amounts are 0, 1, 2, ...
    """

    variables: tuple[str, ...]
    loss: Floats
    amount: Integers
    recall: Callable[[Choices, Integers], None]
    dense: bool = False

    @property
    def points(self) -> int:
        return int(self.loss.shape[-1])

    def rows(self, scope: Sequence[str], shape: Sequence[int]) -> Integers:
        """For each combination of the variables `scope`, flattened: which curve."""
        numbers = np.arange(self.loss[..., 0].size).reshape(self.loss.shape[:-1])
        return np.broadcast_to(aligned(numbers, self.variables, scope), shape).ravel()


_NOTHING = _Curves((), np.zeros(1), np.zeros(1, dtype=np.int64), lambda *_: None, dense=True)


def _all(problem: Problem, resource: str, step: float, most: float) -> Choices:
    """Assignments for every point of the total's curve."""
    floors = [float(term.spent(resource).min()) for term in problem.terms]
    bins = int((most - sum(floors)) / step + len(floors) / 2) + 2
    tables = []
    for term, floor in zip(problem.terms, floors, strict=True):
        amount = np.where(np.isfinite(term.loss), (term.spent(resource) - floor) / step, 0.0)
        tables.append(_leaf(term.variables, term.loss, np.rint(amount).astype(np.int64)))
    for name in problem.order:
        bucket = [table for table in tables if name in table.variables]
        tables = [table for table in tables if name not in table.variables]
        tables.append(_eliminate(name, bucket, problem.sizes, bins))
    tables.sort(key=lambda table: -table.points)
    total = _pruned(reduce(lambda a, b: _join(a, _pruned(b), None, problem.sizes, bins), tables))
    points = np.flatnonzero(np.isfinite(total.loss))
    choices: Choices = {}
    total.recall(choices, points)
    return choices


def _leaf(variables: tuple[str, ...], loss: Floats, amount: Integers) -> _Curves:
    return _Curves(variables, loss[..., None], amount[..., None], lambda *_: None)


def _eliminate(name: str, bucket: Sequence[_Curves], sizes: Mapping[str, int], bins: int) -> _Curves:
    """What the tables of `bucket` amount to when variable `name` takes its best value at each point."""
    curves = sorted((table for table in bucket if table.points > 1), key=lambda table: table.points)
    leaves = [table for table in bucket if table.points == 1]
    if not curves:
        return _optional(name, _added(leaves, name, sizes))
    joined = curves.pop()
    if leaves or not curves:
        curves.insert(0, _added(leaves, name, sizes))
    while len(curves) > 1:
        joined = _join(joined, _pruned(curves.pop()), None, sizes, bins)
    return _join(joined, _pruned(curves[0]), name, sizes, bins)


def _added(leaves: Sequence[_Curves], name: str, sizes: Mapping[str, int]) -> _Curves:
    """The sum of tables with one point per curve, as a table that depends on `name` at least."""
    scope = (*dict.fromkeys([v for leaf in leaves for v in leaf.variables if v != name]), name)
    loss, amount = np.zeros([sizes[v] for v in scope]), np.zeros([sizes[v] for v in scope], dtype=np.int64)
    for leaf in leaves:
        loss = loss + aligned(leaf.loss[..., 0], leaf.variables, scope)
        amount = amount + aligned(leaf.amount[..., 0], leaf.variables, scope)

    def recall(choices: Choices, point: Integers) -> None:
        for leaf in leaves:
            leaf.recall(choices, point)

    return _Curves(scope, loss[..., None], amount[..., None], recall)


def _optional(name: str, leaf: _Curves) -> _Curves:
    """Curves whose points are the values of `name`, the last variable of `leaf`."""

    def recall(choices: Choices, point: Integers) -> None:
        choices[name] = point
        leaf.recall(choices, np.zeros_like(point))

    return _pruned(_Curves(leaf.variables[:-1], leaf.loss[..., 0], leaf.amount[..., 0], recall))


def _pruned(table: _Curves) -> _Curves:
    """The same curves without the points that another of the same curve beats."""
    order = np.lexsort((table.loss, table.amount), axis=-1)
    loss = np.take_along_axis(table.loss, order, axis=-1)
    kept = np.isfinite(loss)
    kept[..., 1:] &= loss[..., 1:] < np.minimum.accumulate(loss, axis=-1)[..., :-1]
    front = np.argsort(~kept, axis=-1, kind="stable")[..., : max(1, int(kept.sum(axis=-1).max()))]
    origin = np.take_along_axis(order, front, axis=-1)
    kept = np.take_along_axis(kept, front, axis=-1)

    def recall(choices: Choices, point: Integers) -> None:
        table.recall(choices, origin[(*(choices[v] for v in table.variables), point)])

    return _Curves(
        table.variables,
        np.where(kept, np.take_along_axis(table.loss, origin, axis=-1), np.inf),
        np.take_along_axis(table.amount, origin, axis=-1),
        recall,
    )


def _join(a: _Curves, b: _Curves, name: str | None, sizes: Mapping[str, int], bins: int) -> _Curves:
    """The least sums of a point of `a` and a point of `b`, for each amount below `bins`.

    With `name`, that variable takes its best value at each point and is gone; `b` should have few points.
    """
    if not a.dense:
        a = _join(_NOTHING, a, None, sizes, bins)
    scope = tuple(dict.fromkeys((*a.variables, *b.variables)))
    target = tuple(v for v in scope if v != name)
    shape = [sizes[v] for v in scope]
    bins = min(bins, a.points + int(b.amount.max(where=np.isfinite(b.loss), initial=0)))
    loss = np.full([*(sizes[v] for v in target), bins], np.inf)
    code = np.zeros(loss.shape, dtype=np.int64)  # value of `name` times points of b, plus point of b
    into = _Curves(target, loss, code, a.recall).rows(scope, shape)
    value = np.zeros_like(into) if name is None else np.indices(shape)[scope.index(name)].ravel()
    _lower(
        loss.reshape(-1, bins), code.reshape(-1, bins), into, value, a, a.rows(scope, shape), b, b.rows(scope, shape)
    )

    def recall(choices: Choices, point: Integers) -> None:
        found = code[(*(choices[v] for v in target), point)]
        if name is not None:
            choices[name] = found // b.points
        chosen = found % b.points
        b.recall(choices, chosen)
        a.recall(choices, point - b.amount[(*(choices[v] for v in b.variables), chosen)])

    return _Curves(target, loss, np.broadcast_to(np.arange(bins), loss.shape), recall, dense=True)


def _lower(
    loss: Floats,
    code: Integers,
    into: Integers,
    value: Integers,
    a: _Curves,
    rows_a: Integers,
    b: _Curves,
    rows_b: Integers,
) -> None:
    """Lower the curves `loss` to what each pair of a curve of `a` and a point of `b` can reach, noting how."""
    curves = a.loss.reshape(-1, a.points)
    extra, shift = b.loss.reshape(-1, b.points), b.amount.reshape(-1, b.points)
    possible = np.isfinite(extra) & (shift < loss.shape[1])
    cell, point = np.nonzero(possible[rows_b] & (curves.min(axis=-1) < np.inf)[rows_a][:, None])
    row = rows_b[cell]
    steps = (into[cell], value[cell] * b.points + point, rows_a[cell], shift[row, point], extra[row, point])
    for target, mark, source, start, more in zip(*(column.tolist() for column in steps), strict=True):
        reached = curves[source, : loss.shape[1] - start] + more
        window = loss[target, start : start + len(reached)]
        better = reached < window
        np.copyto(window, reached, where=better)
        np.copyto(code[target, start : start + len(reached)], mark, where=better)
