"""The best choice within limits, or what keeps it from existing."""

from __future__ import annotations

from collections.abc import Mapping

from hwsearch.errors import ConfigError
from hwsearch.search.dynamic import frontier
from hwsearch.search.integer import IntegerProgram
from hwsearch.search.problem import Problem, Solution, minimum, solution

MOST_CELLS = 20_000
"""Entries of the largest table up to which dynamic programming takes well under a second."""


def solve(problem: Problem, limits: Mapping[str, float]) -> Solution:
    """The solution with the least loss that uses no more of each resource than its limit.

    One limit is met by dynamic programming, whose amounts are rounded (see `frontier`); several limits, and variables
    too entangled for that, by integer programming.

    Raises:
        ConfigError: nothing meets the limits; it says by how much each is missed and which ones conflict.
    """
    easy = problem.cells <= MOST_CELLS
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
