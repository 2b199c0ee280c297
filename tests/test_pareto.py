import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hwsearch.search.pareto import front_mask, hypervolume, hypervolume_gains, intervals_overlap, knee

points = hnp.arrays(
    float,
    st.tuples(st.integers(1, 12), st.just(2)),
    elements=st.floats(0, 10, allow_nan=False).map(lambda x: round(x, 1)),
)


def dominates(a, b):
    return (a <= b).all() and (a < b).any()


@given(points)
def test_front_is_what_nothing_dominates(costs):
    expected = [not any(dominates(other, row) for other in costs) for row in costs]
    assert front_mask(costs).tolist() == expected


@given(points)
def test_hypervolume_is_the_share_of_a_grid_that_is_dominated(costs):
    """Coordinates are multiples of 0.1, so cells of that size are wholly in or out."""
    centers = np.arange(0.05, 10, 0.1)
    x, y = np.meshgrid(centers, centers)
    covered = np.zeros(x.shape, bool)
    for a, b in costs:
        covered |= (x > a) & (y > b)
    assert hypervolume(costs, (10, 10)) == pytest.approx(covered.sum() * 0.01, abs=1e-6)


@given(points, st.integers(0, 11))
def test_adding_a_point_never_shrinks_the_hypervolume(costs, drop):
    fewer = np.delete(costs, drop % len(costs), axis=0)
    assert hypervolume(fewer, (10, 10)) <= hypervolume(costs, (10, 10)) + 1e-9


@given(points, points)
def test_a_gain_is_the_hypervolume_with_the_point_less_the_one_without(costs, new):
    gains = hypervolume_gains(new, costs, (8, 9))
    for point, gain in zip(new, gains, strict=True):
        grown = hypervolume(np.vstack([costs, point]), (8, 9))
        assert gain == pytest.approx(grown - hypervolume(costs, (8, 9)), abs=1e-9)


def test_a_row_with_nan_is_never_on_the_front_and_hides_nothing():
    assert front_mask([[1.0, np.nan], [2.0, 2.0], [np.inf, 0.0]]).tolist() == [False, True, False]


def test_points_beyond_the_reference_add_nothing():
    assert hypervolume([[2.0, 0.1], [0.5, 0.5]], (1.0, 1.0)) == pytest.approx(0.25)
    assert hypervolume(np.empty((0, 2)), (1.0, 1.0)) == 0.0


def test_knee_is_the_balanced_point():
    assert knee([[0.0, 1.0], [0.1, 0.1], [1.0, 0.0], [0.9, 0.9]]) == 1
    assert knee(np.empty((0, 2))) is None


def test_intervals_overlap_when_they_touch():
    assert intervals_overlap((0, 1), (1, 2))
    assert not intervals_overlap((0, 1), (1.1, 2))
