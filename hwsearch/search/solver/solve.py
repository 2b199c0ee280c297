"""The best choice within limits, or what keeps it from existing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hwsearch.errors import ConfigError
from hwsearch.search.solver.dynamic import Frontier, frontier
from hwsearch.search.solver.integer import IntegerProgram
from hwsearch.search.solver.problem import Problem, Solution, minimum, solution

MOST_EFFORT = 200_000
"""Up to which dynamic programming takes a second or two."""

PENALTIES = tuple(0.1 * 2.5**k for k in range(7))
"""Tried on a limited resource, as multiples of what it takes on average to save it."""

GRID = 24
"""Trade-offs found by integer programming, which solves for each of them."""


def solve(problem: Problem, limits: Mapping[str, float]) -> Solution:
    """The solution with the least loss that uses no more of each resource than its limit.

    One limit is met by dynamic programming, whose amounts are rounded (see `frontier`); several limits, and variables
    too entangled for that, by integer programming.

    Raises:
        ConfigError: nothing meets the limits; it says by how much each is missed and which ones conflict.
    """
    easy = problem.effort <= MOST_EFFORT
    if easy and not limits:
        return solution(problem, minimum(problem, lambda term: term.loss), ())
    if easy and len(limits) == 1:
        ((resource, limit),) = limits.items()
        found = frontier(problem, resource).within(limit)
    else:
        found = IntegerProgram(problem).least_loss(limits)
    if found is None:
        raise _infeasible(IntegerProgram(problem), limits)
    return found


def trade_off(problem: Problem, resource: str, limits: Mapping[str, float]) -> Frontier:
    """Every trade-off between loss and `resource` within limits on other resources.

    Exact, up to rounding, without another limit. With one, what it keeps out is replaced by the best under penalties on
    that resource (Everett 1963): nearly the best. Otherwise, and where variables are too entangled, a grid.

    Raises:
        ConfigError: nothing meets the limits.
    """
    if problem.effort <= MOST_EFFORT and len(limits) < 2:
        free = frontier(problem, resource)
        return free if not limits else _penalised(problem, free, *next(iter(limits.items())))
    program = IntegerProgram(problem)
    best, least = program.least_loss(limits), program.least_use(resource, limits)
    if best is None or least is None:
        raise _infeasible(program, limits)
    most = solution(problem, best.choices, [resource]).use[resource]
    within = [program.least_loss({**limits, resource: limit}) for limit in np.linspace(least, most, GRID)]
    found = [best.choices, *(point.choices for point in within if point is not None)]
    return Frontier.of(problem, resource, {name: np.array([c[name] for c in found]) for name in problem.sizes})


def _penalised(problem: Problem, free: Frontier, other: str, limit: float) -> Frontier:
    """The solutions of `free`, and of frontiers under growing penalties on `other`, that use no more than `limit`."""
    if (problem.use(other, free.choices) <= limit).all():
        return free
    ends = (minimum(problem, cost) for cost in (lambda term: term.spent(other), lambda term: term.loss))
    lean, good = (solution(problem, end, [other]) for end in ends)
    if lean.use[other] > limit:
        raise _infeasible(IntegerProgram(problem), {other: limit})
    slope = (lean.loss - good.loss) / max(good.use[other] - lean.use[other], 1e-12)
    found = [free.choices, {name: np.array([value]) for name, value in lean.choices.items()}]
    for factor in PENALTIES:
        terms = [replace(t, loss=t.loss + factor * slope * np.asarray(t.use.get(other, 0.0))) for t in problem.terms]
        found.append(frontier(Problem(problem.sizes, tuple(terms)), free.resource).choices)
    joined = {name: np.concatenate([choices[name] for choices in found]) for name in problem.sizes}
    fits = problem.use(other, joined) <= limit
    return Frontier.of(problem, free.resource, {name: values[fits] for name, values in joined.items()})


def _infeasible(program: IntegerProgram, limits: Mapping[str, float]) -> ConfigError:
    conflict = _conflict(program, limits)
    if not conflict:
        return ConfigError("no combination of choices is allowed")
    lines = []
    for resource, limit in limits.items():
        others = {name: limits[name] for name in conflict if name != resource} if resource in conflict else {}
        least = program.least_use(resource, others)
        assert least is not None
        within = " and ".join(f"{name} <= {value:g}" for name, value in others.items())
        missed = f", {least - limit:.3g} ({least / limit - 1:.1%}) over" if least > limit else ""
        lines.append(
            f"{resource} <= {limit:g}: the least possible{' with ' * bool(within) + within} is {least:.6g}{missed}"
        )
    binding = " and ".join(f"`{name}`" for name in conflict)
    return ConfigError(
        f"no candidate meets {binding}{' together' if len(conflict) > 1 else ''}",
        where="\n  ".join(lines),
        hint="loosen a limit, or widen the space",
    )


def _conflict(program: IntegerProgram, limits: Mapping[str, float]) -> dict[str, float]:
    """A smallest set of limits that cannot be met together: no limit can be left out of it."""
    conflict = dict(limits)
    for resource in limits:
        others = {name: limit for name, limit in conflict.items() if name != resource}
        if program.least_loss(others) is None:
            conflict = others
    return conflict
