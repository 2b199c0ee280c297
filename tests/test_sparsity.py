"""How much of a network can go at which loss: against all combinations, for every metric."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.config import SpaceConfig
from hwsearch.model.graph import trace
from hwsearch.search.effects.effects import Effect, Sensitivity
from hwsearch.search.effects.narrowing import last_that_fits, narrowest_precisions
from hwsearch.search.pricing.sparsity import sparsity_curve, sparsity_of
from hwsearch.space.space import build_space, decode, dimensions
from hwsearch.space.target import load_target


class Residual(nn.Module):
    """A residual branch with a width of its own, and a depthwise layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(self.depthwise(x).relu().mean((2, 3)))


NETWORK = trace(Residual().eval(), np.zeros((2, 3, 8, 8), np.float32), name="residual")
SOURCE = NETWORK.source
SPACE = build_space(SOURCE, load_target("ort-cpu"), SpaceConfig(granularity=4), isa=())
CHOICES = [d for d in dimensions(SPACE) if not d.name.startswith("precision:")]


def test_the_space_has_what_is_to_be_told_apart():
    assert set(SPACE.droppable)
    assert len(SPACE.widths) == 2


@pytest.mark.parametrize("metric", ["channels", "params", "macs"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_each_row_is_the_best_of_all_combinations(metric, seed):
    rng = np.random.default_rng(seed)
    losses = {}

    def loss(kind, name, value):
        return losses.setdefault((kind, name, value), float(rng.uniform(0.01, 1)))

    curve = sparsity_curve(SOURCE, SPACE, loss, metric)
    found = []
    for numbers in itertools.product(*(range(d.size) for d in CHOICES)):
        candidate = decode(SPACE, SOURCE, {d.name: n for d, n in zip(CHOICES, numbers, strict=True)})
        hurt = sum(losses.get(("keep", name, width), 0.0) for name, width in candidate.keep.items())
        hurt += sum(losses[("drop", name, 1)] for name in candidate.dropped)
        found.append((sparsity_of(candidate, SOURCE, metric), hurt))
    best = [min(hurt for sparsity, hurt in found if sparsity >= row - 1e-9) for row in curve.sparsity]
    assert np.allclose(curve.loss, best, atol=1e-9)
    assert (np.diff(curve.sparsity) > 0).all()
    assert (np.diff(curve.loss) > 0).all()
    assert curve.sparsity[0] == 0


def test_rows_decode_to_networks_of_that_sparsity():
    curve = sparsity_curve(SOURCE, SPACE, lambda kind, _name, value: 1.0 if kind == "drop" else 1 / value, "macs")
    assert len(curve) > 3
    for row in range(len(curve)):
        candidate = decode(curve.space, SOURCE, curve.numbers(row))
        assert sparsity_of(candidate, SOURCE, "macs") == pytest.approx(curve.sparsity[row])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), goal=st.floats(0.05, 0.8))
def test_a_goal_is_met_by_the_least_harmful_network_near_it(seed, goal):
    rng = np.random.default_rng(seed)
    losses = {}

    def loss(kind, name, value):
        return losses.setdefault((kind, name, value), float(rng.uniform(0.01, 1)))

    curve = sparsity_curve(SOURCE, SPACE, loss, "params")
    found = sparsity_of(decode(curve.space, SOURCE, curve.at(goal, 0.05)), SOURCE, "params")
    everything = [
        sparsity_of(decode(SPACE, SOURCE, {d.name: n for d, n in zip(CHOICES, numbers, strict=True)}), SOURCE, "params")
        for numbers in itertools.product(*(range(d.size) for d in CHOICES))
    ]
    assert abs(found - goal) <= 0.05 + 1e-6 or min(abs(sparsity - goal) for sparsity in everything) > 0.05
    steps = [sparsity_of(decode(curve.space, SOURCE, n), SOURCE, "params") for n in curve.steps(goal, 0.05)]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(found)


def test_multiply_accumulates_are_those_of_the_network():
    narrow = decode(SPACE, SOURCE, {"keep:stem": 0})
    counted = {layer.name: layer.macs for layer in SOURCE.layers}
    kept = SPACE.widths["stem"][0] / 8
    left = sum(macs * kept for macs in counted.values())  # every layer reads or writes the stem's channels, once
    assert sparsity_of(narrow, SOURCE, "macs") == pytest.approx(1 - left / sum(counted.values()))


def test_smoothed_sensitivities_never_rise_with_the_width():
    effects = [
        Effect(kind="keep", name="a", value=width, loss=loss, sigma=0.1)
        for width, loss in ((8, 0.3), (16, 0.5), (24, 0.2), (32, 0.0))
    ]
    found = Sensitivity(images=1, measure="kl", method="measured", effects=tuple(effects))
    losses = [found.loss("keep", "a", width)[0] for width in range(8, 33)]
    assert losses == sorted(losses, reverse=True)


def test_precisions_follow_a_tolerance():
    layers = [layer.name for layer in SOURCE.layers]
    effects = [
        Effect(kind="precision", name=name, value="int8", loss=0.1 * i, sigma=0.0) for i, name in enumerate(layers)
    ]
    found = Sensitivity(images=1, measure="kl", method="measured", effects=tuple(effects))
    numbers, tolerance = narrowest_precisions(found, SPACE, lambda chosen: len(chosen) <= 3)
    assert tolerance == pytest.approx(0.2)
    chosen = decode(SPACE, SOURCE, numbers)
    assert [name for name in layers if chosen.precision[name] == "int8"] == layers[:3]
    everything, _ = narrowest_precisions(found, SPACE, lambda _: True)
    assert set(decode(SPACE, SOURCE, everything).precision.values()) == {"int8"}
    assert narrowest_precisions(found, SPACE, lambda _: False)[0] == {}


@given(count=st.integers(1, 50), limit=st.integers(0, 49))
def test_bisection_finds_the_last_that_fits(count, limit):
    asked = []

    def fits(i):
        asked.append(i)
        return i <= limit

    assert last_that_fits(count, fits) == min(limit, count - 1)
    assert len(asked) <= 7
