"""The best choice within limits, or what keeps it from existing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwsearch.errors import ConfigError
from hwsearch.search.dynamic import Frontier, frontier
from hwsearch.search.integer import IntegerProgram
from hwsearch.search.problem import Problem, Solution, minimum, solution

MOST_EFFORT = 200_000
"""Up to which dynamic programming takes a second or two."""

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

    Only a grid of trade-offs where dynamic programming cannot be used (see `solve`).

    Raises:
        ConfigError: nothing meets the limits.
    """
    if problem.effort <= MOST_EFFORT and not limits:
        return frontier(problem, resource)
    program = IntegerProgram(problem)
    best, least = program.least_loss(limits), program.least_use(resource, limits)
    if best is None or least is None:
        raise _infeasible(program, limits)
    most = solution(problem, best.choices, [resource]).use[resource]
    within = [program.least_loss({**limits, resource: limit}) for limit in np.linspace(least, most, GRID)]
    found = [best.choices, *(point.choices for point in within if point is not None)]
    return Frontier.of(problem, resource, {name: np.array([c[name] for c in found]) for name in problem.sizes})


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
