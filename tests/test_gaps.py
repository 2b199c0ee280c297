"""Where the front may still grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.search.guided.gaps import front_gaps

CORNER = (-0.5, 10.0)  # half of the accuracy, ten milliseconds

costs = st.lists(st.tuples(st.floats(-1, 0), st.floats(1, 12)), min_size=1, max_size=12)


def test_the_gap_with_most_to_gain_comes_first():
    # (.6, 2 ms) and (.9, 4 ms): between 1 and 2 ms .1 · 1 can be gained, between them .3 · 2, up to 8 ms .01 · 4
    assert front_gaps([(-0.6, 2.0), (-0.9, 4.0), (-0.91, 8.0)], CORNER, 1.0, 0.0) == [
        (2.0, 4.0),
        (1.0, 2.0),
        (4.0, 8.0),
    ]


def test_a_model_that_gained_nothing_halves_its_gap():
    found = [(-0.6, 2.0), (-0.9, 4.0)]
    assert front_gaps([*found, (-0.2, 3.0)], CORNER, 1.9, 0.0)[:2] == [(2.0, 3.0), (3.0, 4.0)]


def test_every_model_that_is_too_bad_halves_the_hope_of_faster_ones():
    def order(*bad):
        return front_gaps([(-0.9, 8.0), *bad], CORNER, 1.0, 0.0)

    assert order((-0.4, 5.0)) == [(5.0, 8.0), (1.0, 5.0)]  # the wider gap, but beyond a model that does not count
    assert order((-0.4, 7.0)) == [(1.0, 7.0), (7.0, 8.0)]


def test_what_cannot_be_told_apart_comes_last():
    found = [(-0.6, 2.0), (-0.7, 3.0), (-0.71, 9.0)]
    assert front_gaps(found, CORNER, 2.0, 0.02) == [(2.0, 3.0), (3.0, 9.0)]


def test_nothing_can_be_gained_beyond_the_best_model():
    assert front_gaps([(-0.9, 4.0), (-0.8, 6.0)], CORNER, 3.0, 0.0) == [(3.0, 4.0)]


@given(costs, st.floats(0.5, 1))
def test_gaps_lie_between_neighbours_and_hold_no_model(costs, fastest):
    latencies = sorted({fastest, *(latency for _, latency in costs)})
    for low, high in front_gaps(costs, CORNER, fastest, 0.0):
        assert low < CORNER[1]
        assert latencies.index(high) == latencies.index(low) + 1


@pytest.mark.parametrize("fastest", [1.0, 2.5])
def test_models_faster_than_the_fastest_possible_are_left_out(fastest):
    assert all(low >= fastest for low, _ in front_gaps([(-0.6, 2.0), (-0.9, 4.0)], CORNER, fastest, 0.0))
