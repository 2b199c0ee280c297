"""What a repair is made of: statistics of inputs, selection of channels, least squares."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.compress import statistics
from hwsearch.compress.least_squares import solve
from hwsearch.compress.select import Reader, compensated, damped, removal_order
from hwsearch.compress.statistics import sample_positions, second_moments, take_inputs, take_outputs

# --------------------------------------------------------------------------- statistics


CONVOLUTIONS = st.builds(
    lambda groups, inner, outer, kernel, **options: nn.Conv2d(
        groups * inner, groups * outer, kernel, groups=groups, padding_mode="zeros", **options
    ),
    st.sampled_from([1, 3]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([(1, 1), (3, 2), (2, 3)]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    padding=st.sampled_from([0, 1, (2, 1)]),
    dilation=st.sampled_from([1, 2]),
)


def test_sampled_rows_times_the_weight_are_the_sampled_outputs():
    @settings(max_examples=30, deadline=None)
    @given(CONVOLUTIONS, st.sampled_from([7, 40, 10_000]))
    def check(layer, rows):
        inputs = torch.randn(3, layer.in_channels, 9, 8)
        found = layer(inputs)
        positions = sample_positions("layer", 3, found[0, 0].numel(), rows)
        taken = take_inputs(layer, inputs, positions)
        weight = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).reshape(layer.groups, -1, taken.shape[2])
        expected = take_outputs(layer, found, positions).reshape(taken.shape[1], layer.groups, -1).movedim(1, 0)
        torch.testing.assert_close(taken @ weight.transpose(1, 2), expected, atol=1e-5, rtol=1e-4)

    check()


@pytest.mark.parametrize("shape", [(4, 6), (4, 7, 6), (4, 2, 3, 6)])
def test_linear_layers_on_any_number_of_axes(shape):
    layer = nn.Linear(6, 5)
    inputs = torch.randn(shape)
    positions = sample_positions("layer", 4, inputs[0].numel() // 6, 12)
    taken = take_inputs(layer, inputs, positions)[0]
    expected = take_outputs(layer, layer(inputs), positions)
    torch.testing.assert_close(taken[:, :-1] @ layer.weight.T + layer.bias, expected)


def test_positions_are_reproducible_distinct_and_within_bounds():
    one, again = (sample_positions("a", 10, 50, 70) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == (10, 7)
    assert one.min() >= 0
    assert one.max() < 50
    assert all(len(set(row.tolist())) == 7 for row in one)
    assert not torch.equal(one, sample_positions("b", 10, 50, 70))
    assert sample_positions("a", 10, 50, 500).tolist() == [list(range(50))] * 10


def test_second_moments_do_not_depend_on_the_chunks(monkeypatch):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    inputs = torch.randn(10, 3, 16, 16)
    whole = second_moments(module, ["0", "2"], inputs, rows=100)
    monkeypatch.setattr(statistics, "CHUNK_IMAGES", 3)
    monkeypatch.setattr(statistics, "CHUNK_ROWS", 7)
    parts = second_moments(module, ["0", "2"], inputs, rows=100)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=1e-6)
    assert whole["2"].shape == (1, 4 * 9 + 1, 4 * 9 + 1)
    assert whole["2"][0, -1, -1] == pytest.approx(1)


# --------------------------------------------------------------------------- selection


def random_reader(draw, channels, width, count):
    rows = torch.randn(count, channels * width, generator=draw, dtype=torch.float64)
    rows = rows @ torch.randn(channels * width, channels * width, generator=draw, dtype=torch.float64)
    rows = torch.cat([rows, torch.ones(count, 1, dtype=torch.float64)], 1)
    weight = torch.randn(4, channels * width + 1, generator=draw, dtype=torch.float64)
    columns = torch.arange(channels * width).reshape(channels, width)
    return Reader(weight, damped(rows.T @ rows / count, 1e-6), columns)


def error_without(reader, gone):
    """Share of the output's energy that is lost when channels go and all other weights compensate, solved directly."""
    left = torch.ones(len(reader.moments), dtype=torch.bool)
    left[reader.columns[list(gone)].flatten()] = False
    change = torch.zeros_like(reader.weight)
    change[:, left] = compensated(reader.weight, reader.moments, left.nonzero().flatten())
    change -= reader.weight
    energy = (reader.weight @ reader.moments * reader.weight).sum()
    return float((change @ reader.moments * change).sum() / energy)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3))
def test_each_removal_is_the_one_that_costs_least(seed, channels, width, readers):
    draw = torch.Generator().manual_seed(seed)
    layers = [random_reader(draw, channels, width, 64) for _ in range(readers)]
    gone = []
    for chosen in removal_order(layers)[:-1]:
        errors = {
            channel: sum(error_without(layer, [*gone, channel]) for layer in layers)
            for channel in set(range(channels)) - set(gone)
        }
        assert errors[int(chosen)] <= min(errors.values()) * (1 + 1e-6) + 1e-12
        gone.append(int(chosen))


def test_greedy_removal_is_near_the_best_subset():
    draw = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(10):
        layer = random_reader(draw, 6, 2, 64)
        best = min(error_without(layer, gone) for gone in itertools.combinations(range(6), 3))
        ratios.append(error_without(layer, removal_order([layer])[:3].tolist()) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 1.1


def test_a_duplicated_channel_goes_first_and_is_made_up_for():
    rows = torch.randn(200, 5, dtype=torch.float64)
    rows[:, 3] = 2 * rows[:, 1]
    rows = torch.cat([rows, torch.ones(200, 1, dtype=torch.float64)], 1)
    weight = torch.randn(4, 6, dtype=torch.float64)
    moments = damped(rows.T @ rows / 200, 1e-9)
    first = removal_order([Reader(weight, moments, torch.arange(5)[:, None])])[0]
    assert first in (1, 3)
    left = torch.tensor([c for c in range(6) if c != first])
    torch.testing.assert_close(rows[:, left] @ compensated(weight, moments, left).T, rows @ weight.T, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------- least squares


def test_solve_is_least_squares_per_group():
    inputs, target = torch.randn(3, 200, 5), torch.randn(3, 200, 2)
    inputs[..., -1] = 1
    found = solve(inputs, torch.zeros(3, 5, 2), target, ridge=1e-9)
    torch.testing.assert_close(found, torch.linalg.lstsq(inputs, target).solution, atol=1e-4, rtol=1e-4)


def test_a_strong_ridge_keeps_the_weights_and_moves_only_the_bias():
    inputs, weight = torch.randn(1, 100, 4), torch.randn(1, 4, 2)
    inputs[..., -1] = 1
    found = solve(inputs, weight, inputs @ weight + 3, ridge=1e9)
    torch.testing.assert_close(found[:, :-1], weight[:, :-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, -1], weight[:, -1] + 3, atol=1e-4, rtol=0)


def test_rectified_rounds_never_raise_the_error_after_the_relu():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 400, 6, generator=draw)
    inputs[..., -1] = 1
    target = torch.randn(1, 400, 8, generator=draw) + inputs[..., :3].sum(2, keepdim=True)
    offset = torch.randn(1, 400, 8, generator=draw)

    def loss(rounds):
        found = solve(inputs, torch.zeros(1, 6, 8), target, offset=offset, ridge=1e-9, rectify=rounds)
        result = inputs @ found + offset
        return torch.where(target < 0, result.clamp_min(0), result - target).square().mean().item()

    losses = [loss(rounds) for rounds in (0, 1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
