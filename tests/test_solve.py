"""Both solvers against trying everything, on random chains, trees and loops with forbidden combinations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import ConfigError
from hwsearch.search.solver.dynamic import frontier, unbeaten
from hwsearch.search.solver.integer import IntegerProgram
from hwsearch.search.solver.problem import Problem, Term, elimination_order, minimum
from hwsearch.search.solver.solve import MOST_EFFORT, solve

SHAPES = {
    "apart": [("a",), ("b",), ("c",), ("d",)],
    "chain": [("a", "b"), ("b", "c"), ("c", "d"), ("a",), ("d",)],
    "tree": [("b", "a"), ("a", "c"), ("d", "a"), ("c",)],
    "loop": [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a"), ("b",)],
    "triples": [("a", "b", "c"), ("d", "b", "a"), ("c", "d")],
}


@st.composite
def problems(draw):
    sizes = {name: draw(st.integers(1, 4)) for name in "abcd"}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    forbidden = draw(st.sampled_from([0.0, 0.0, 0.15, 0.4]))
    terms = []
    for variables in SHAPES[draw(st.sampled_from(sorted(SHAPES)))]:
        shape = [sizes[name] for name in variables]
        loss = np.where(rng.random(shape) < forbidden, np.inf, rng.integers(-2, 20, shape) / 8)
        # Whole amounts, below zero too: a price relative to a base may be a saving.
        use = {"ms": rng.integers(-3, 12, shape) * 1.0, "mb": rng.integers(0, 9, shape) * 1.0}
        terms.append(Term(variables, np.asarray(loss), {k: np.asarray(v) for k, v in use.items()}))
    return Problem(sizes, tuple(terms))


def everything(problem):
    """Assignments that are allowed, with loss and use of both resources."""
    names = list(problem.sizes)
    values = np.array(list(product(*(range(problem.sizes[name]) for name in names))))
    choices = {name: values[:, i] for i, name in enumerate(names)}
    loss = problem.loss(choices)
    ok = np.isfinite(loss)
    return loss[ok], problem.use("ms", choices)[ok], problem.use("mb", choices)[ok]


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_the_frontier_is_all_that_nothing_beats(problem):
    loss, ms, _ = everything(problem)
    if not len(loss):
        with pytest.raises(ConfigError, match="no combination"):
            frontier(problem, "ms", step=1)
        return
    found = frontier(problem, "ms", step=1)
    best = unbeaten(ms, loss)
    assert found.use == pytest.approx(ms[best])
    assert found.loss == pytest.approx(loss[best])


@settings(max_examples=100, deadline=None)
@given(problem=problems(), share=st.floats(-0.2, 1.2))
def test_any_limit_is_answered_from_the_frontier(problem, share):
    loss, ms, _ = everything(problem)
    if not len(loss):
        return
    limit = ms.min() + share * np.ptp(ms)
    found = frontier(problem, "ms", step=1).within(limit)
    if not (ms <= limit).any():
        assert found is None
    else:
        assert found.loss == pytest.approx(loss[ms <= limit].min())
        assert found.use["ms"] <= limit
        values = {name: np.array([value]) for name, value in found.choices.items()}
        assert problem.loss(values)[0] == pytest.approx(found.loss)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), shares=st.tuples(st.floats(-0.1, 1), st.floats(-0.1, 1)))
def test_several_limits_are_met_at_the_least_loss(problem, shares):
    loss, ms, mb = everything(problem)
    if not len(loss):
        return
    limits = {"ms": ms.min() + shares[0] * np.ptp(ms) + 0.01, "mb": mb.min() + shares[1] * np.ptp(mb) + 0.01}
    fits = (ms <= limits["ms"]) & (mb <= limits["mb"])
    if fits.any():
        assert solve(problem, limits).loss == pytest.approx(loss[fits].min(), abs=1e-5)
    else:
        with pytest.raises(ConfigError, match="no candidate meets"):
            solve(problem, limits)


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_both_solvers_find_the_least_of_everything(problem):
    loss, ms, _ = everything(problem)
    if not len(loss):
        assert IntegerProgram(problem).least_loss({}) is None
        return
    for choices in (minimum(problem, lambda term: term.loss), IntegerProgram(problem).least_loss({}).choices):
        values = {name: np.array([value]) for name, value in choices.items()}
        assert problem.loss(values)[0] == pytest.approx(loss.min(), abs=1e-5)
    assert IntegerProgram(problem).least_use("ms", {}) == pytest.approx(ms.min())


@given(problem=problems())
def test_every_variable_is_eliminated_once(problem):
    for sweep in (False, True):
        order = elimination_order(problem.sizes, [term.variables for term in problem.terms], sweep=sweep)
        assert sorted(order) == sorted(problem.sizes)


def chain(length, options, rng):
    """Amounts that are no multiples of anything, and a price on every change between neighbours."""
    terms = []
    for i in range(length):
        loss = np.r_[np.sort(rng.exponential(1, options - 1))[::-1], 0]
        terms.append(Term((f"x{i}",), loss, {"ms": np.sort(rng.uniform(0.1, 1, options))}))
        if i:
            pair = rng.uniform(0, 0.1, (options, options))
            terms.append(Term((f"x{i - 1}", f"x{i}"), np.zeros_like(pair), {"ms": pair}))
    return Problem({f"x{i}": options for i in range(length)}, tuple(terms))


def test_a_long_chain_has_narrow_tables_and_rounding_costs_next_to_nothing():
    problem = chain(40, 6, np.random.default_rng(3))
    assert problem.effort < 40 * 6 * 6
    coarse, fine = frontier(problem, "ms"), frontier(problem, "ms", step=0.0005)
    slack = 0.004 * np.ptp(fine.use)
    for limit in np.linspace(fine.use[0], fine.use[-1], 50)[1:]:
        best = fine.within(limit)
        assert coarse.within(limit + slack).loss <= best.loss + 1e-9
        assert coarse.within(limit).use["ms"] <= limit


def test_a_limit_that_cannot_be_met_says_by_how_much():
    problem = chain(4, 3, np.random.default_rng(0))
    least = frontier(problem, "ms").use[0]
    with pytest.raises(
        ConfigError, match=rf"no candidate meets `ms`\n.*least possible is {least:.5f}.*\(100\.0%\) over"
    ):
        solve(problem, {"ms": least / 2})


def test_limits_that_only_conflict_together_are_named_and_others_are_not():
    swap = np.array([0.0, 1.0])
    use = {"ms": swap, "mb": 1 - swap, "mj": np.array([2.0, 2.0])}
    problem = Problem({"a": 2}, (Term(("a",), np.zeros(2), use),))
    with pytest.raises(ConfigError) as caught:
        solve(problem, {"ms": 0.5, "mb": 0.5, "mj": 3.0})
    assert caught.value.message == "no candidate meets `ms` and `mb` together"
    assert "ms <= 0.5: the least possible with mb <= 0.5 is 1, 0.5 (100.0%) over" in caught.value.where
    assert "mj <= 3: the least possible is 2" in caught.value.where


def test_an_entangled_problem_goes_to_the_integer_program():
    rng = np.random.default_rng(1)
    names = [f"x{i}" for i in range(12)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    terms = [Term(pair, rng.uniform(0, 1, (3, 3)), {"ms": rng.uniform(0, 1, (3, 3))}) for pair in pairs]
    problem = Problem(dict.fromkeys(names, 3), tuple(terms))
    assert problem.effort > MOST_EFFORT
    assert solve(problem, {"ms": 30.0}).use["ms"] <= 30.0
