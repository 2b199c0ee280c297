"""The same problem as a mixed-integer linear program: for several limits, and for variables too entangled otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from hwsearch.search.solver.problem import Floats, Problem, Solution, Term, solution

GAP = 1e-6
"""Relative distance from the optimum, and relative tolerance of limits."""


class IntegerProgram:
    """A problem in the form HiGHS takes.

    One 0/1 unknown per value of a variable and one unknown per allowed entry of a term; the entries of a term that
    agree with a variable's value add up to that value's unknown (the local polytope, Wainwright and Jordan 2008).
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        ends = np.cumsum(list(problem.sizes.values()), dtype=np.int64).tolist()
        self._first = dict(zip(problem.sizes, [0, *ends], strict=False))
        self._values = ends[-1] if ends else 0
        self._entries = [np.argwhere(np.isfinite(term.loss)) for term in problem.terms]

    def least_loss(self, limits: Mapping[str, float]) -> Solution | None:
        """The solution with the least loss within `limits`; None if nothing meets them."""
        return self._minimise(lambda term: term.loss, limits)

    def least_use(self, resource: str, limits: Mapping[str, float]) -> float | None:
        """The least use of a resource within `limits` on others; None if nothing meets them."""
        found = self._minimise(lambda term: term.spent(resource), limits)
        return None if found is None else solution(self._problem, found.choices, [resource]).use[resource]

    def _minimise(self, cost: Callable[[Term], Floats], limits: Mapping[str, float]) -> Solution | None:
        objective = self._costs(cost)
        bounds = [self._limit(resource, limit) for resource, limit in limits.items()]
        found = milp(
            objective / (np.abs(objective).max(initial=0) or 1),
            integrality=(np.arange(len(objective)) < self._values).astype(np.int64),
            bounds=Bounds(0, 1),
            constraints=[self._consistency, *bounds],
            options={"mip_rel_gap": GAP},
        )
        if found.x is None:
            return None
        choices = {
            name: int(np.argmax(found.x[at : at + self._problem.sizes[name]])) for name, at in self._first.items()
        }
        return solution(self._problem, choices, limits)

    def _limit(self, resource: str, limit: float) -> LinearConstraint:
        row = self._costs(lambda term: term.spent(resource))
        scale = np.abs(row).max(initial=0) or 1
        return LinearConstraint(row[None, :] / scale, -np.inf, limit / scale)

    def _costs(self, cost: Callable[[Term], Floats]) -> Floats:
        terms = [cost(t)[tuple(entries.T)] for t, entries in zip(self._problem.terms, self._entries, strict=True)]
        return np.concatenate([np.zeros(self._values), *terms])

    @cached_property
    def _consistency(self) -> LinearConstraint:
        """Every variable and every term takes exactly one value, and they agree."""
        ones, agree, at = [], [], self._values
        for name, size in self._problem.sizes.items():
            ones.append(np.arange(size) + self._first[name])
        for term, entries in zip(self._problem.terms, self._entries, strict=True):
            unknowns = np.arange(len(entries)) + at
            ones.append(unknowns)
            for name, values in zip(term.variables, entries.T, strict=True):
                agree += [
                    (self._first[name] + value, unknowns[values == value]) for value in range(self._problem.sizes[name])
                ]
            at += len(entries)
        matrix = lil_array((len(ones) + len(agree), at))
        for row, unknowns in enumerate(ones):
            matrix[row, unknowns] = 1
        for row, (value, unknowns) in enumerate(agree, start=len(ones)):
            matrix[row, unknowns] = 1
            matrix[row, value] = -1
        totals = np.r_[np.ones(len(ones)), np.zeros(len(agree))]
        return LinearConstraint(matrix.tocsr(), totals, totals)
