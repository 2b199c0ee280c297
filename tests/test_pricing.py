"""Prices add up to predictions, and what the solver makes of them is the best there is."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from model_networks import traced
from torch import nn

from hwsearch.config import SpaceConfig
from hwsearch.errors import ConfigError
from hwsearch.latency.grid import features as unit_features
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.table import LatencyTable
from hwsearch.model.graph import trace
from hwsearch.search.pricing.counts import layer_counts
from hwsearch.search.pricing.prices import PriceList, table_prices
from hwsearch.search.pricing.pricing import Pricing
from hwsearch.search.pricing.proxy import ProxyPredictor
from hwsearch.search.pricing.segments import segments_of
from hwsearch.space.space import baselines, build_space, decode, dimensions, encode, uniform
from hwsearch.space.target import load_target
from hwsearch.zoo.resnet import ResNet

TABLES = Path(__file__).parents[1] / "latency_tables"
EDGE = TABLES / "example-edge-asic"
COST = {"fp32": 0.0, "bf16": 0.001, "int8": 0.02, "int4": 0.15, "int2": 0.8}


@pytest.fixture(scope="module")
def network():
    return trace(ResNet(2, 10).eval(), np.zeros((1, 3, 32, 32), np.float32), name="resnet14")


@pytest.fixture(scope="module")
def small():
    return trace(ResNet(1, 10).eval(), np.zeros((1, 3, 32, 32), np.float32), name="resnet8")


def loss(kind, name, value):
    """Some sensitivity that differs from name to name."""
    scale = 0.5 + sum(name.encode()) % 17 / 17
    if kind == "drop":
        return scale
    return scale * (COST[value] if kind == "precision" else 8 / value)


def setting(network, kind):
    """Space, prices and predictor of a target with a committed table."""
    name = {"onnxruntime": "ort-cpu", "openvino": "openvino-cpu", "edge": str(EDGE / "edge-asic-4bit.yaml")}[kind]
    target = load_target(name)
    folder = EDGE if kind == "edge" else next(TABLES.glob(f"{kind}/*/cifar10-resnet20"))
    table = LatencyTable.load(folder)
    space = build_space(network.source, target, SpaceConfig(), isa=table.manifest.device.isa)
    predictor = table.predictor(network.source, target, network.template)
    return space, table_prices(table, network, target, predictor), predictor


def drawn(space, source, count, seed=0):
    rng = np.random.default_rng(seed)
    listed = dimensions(space)
    return [decode(space, source, {d.name: int(rng.integers(d.size)) for d in listed}) for _ in range(count)]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "edge"])
def priced(request, network):
    space, prices, predictor = setting(network, request.param)
    return network.source, space, predictor, Pricing(network.source, space, prices, loss)


# --------------------------------------------------------------------------- prices


def test_the_price_of_any_candidate_is_its_prediction(priced):
    source, space, predictor, pricing = priced
    for candidate in [*drawn(space, source, 40), *baselines(space).values()]:
        assert pricing.price_ms(candidate) == pytest.approx(predictor(candidate)[0], rel=1e-9)


def test_solutions_are_candidates_of_the_space_with_the_loss_and_latency_promised(priced):
    source, space, predictor, pricing = priced
    weights = np.random.default_rng(0).uniform(0.3, 3, len(pricing.segments))
    chart = pricing.chart(weights)
    assert len(chart) > 50
    assert (np.diff(chart.latency_ms) > 0).all()
    assert (np.diff(chart.loss) < 0).all()
    for row in np.linspace(0, len(chart) - 1, 25).astype(int):
        candidate = chart.candidate(int(row))
        assert decode(space, source, encode(space, candidate)) == candidate
        assert chart.latency_ms[row] == pytest.approx(predictor(candidate)[0], rel=1e-9)
        assert chart.loss[row] == pytest.approx(pricing.surrogate(candidate, weights))


def test_no_random_candidate_beats_the_chart(priced):
    source, space, predictor, pricing = priced
    chart = pricing.chart(np.ones(len(pricing.segments)))
    slack = 0.003 * np.ptp(chart.latency_ms)
    for candidate in drawn(space, source, 200, seed=1):
        row = np.searchsorted(chart.latency_ms, predictor(candidate)[0] + slack, side="right") - 1
        assert chart.loss[row] <= pricing.features(candidate).sum() + 1e-9


def test_prices_follow_what_the_predictor_learns(network):
    space, prices, predictor = setting(network, "onnxruntime")
    pricing = Pricing(network.source, space, prices, loss)
    for candidate in drawn(space, network.source, 12, seed=2):
        integer = sum(name == "int8" for name in candidate.precision.values()) / len(candidate.precision)
        predictor.learn(candidate, predictor(candidate)[0] * (1 + 0.2 * integer))
    chart = pricing.chart(np.ones(len(pricing.segments)))
    for row in (0, len(chart) // 2, len(chart) - 1):
        assert chart.latency_ms[row] == pytest.approx(predictor(chart.candidate(row))[0], rel=0.005)


def test_a_chart_stays_what_it_is_when_prices_change(network):
    space, prices, predictor = setting(network, "edge")
    pricing = Pricing(network.source, space, prices, loss)
    weights = np.ones(len(pricing.segments))
    chart = pricing.chart(weights)
    before = [chart.candidate(row) for row in range(len(chart))]
    for candidate in drawn(space, network.source, 12, seed=3):
        dear = sum(name == "int8" for name in candidate.precision.values())
        predictor.learn(candidate, predictor(candidate)[0] * (1 + 0.1 * dear))
    assert not np.array_equal(pricing.chart(weights).latency_ms, chart.latency_ms)
    assert [chart.candidate(row) for row in range(len(chart))] == before


def synthetic(network, target):
    """Prices of any network: a call, and something that grows with the values moved and with bits."""
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    slowness = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6, "int2": 0.4, "": 1.0}

    def cost_us(kind, node):
        return slowness[kind.precision] * (0.1 + sum(unit_features(kind, node)) / 1e3)

    def predict(candidate):
        return sum(cost_us(*column) * count for column, count in reader.counts(candidate).items()) / 1e3, 0.0

    return PriceList(reader.units, cost_us, predict)


@pytest.mark.parametrize("target", ["ort-cpu", "openvino-cpu", str(EDGE / "edge-asic-4bit.yaml")])
@pytest.mark.parametrize("name", ["depthwise", "concat", "pre-activation", "transformer"])
def test_prices_add_up_whatever_the_network(name, target):
    network, target = traced(name), load_target(target)
    space = build_space(network.source, target, SpaceConfig(granularity=2), isa=("avx512_bf16",))
    prices = synthetic(network, target)
    pricing = Pricing(network.source, space, prices, loss)
    for candidate in drawn(pricing.space, network.source, 25):
        assert pricing.price_ms(candidate) == pytest.approx(prices.predict(candidate)[0], rel=1e-9)
    weights = np.ones(len(pricing.segments))
    chart = pricing.chart(weights)
    for row in range(0, len(chart), 5):
        assert chart.loss[row] == pytest.approx(pricing.surrogate(chart.candidate(row), weights))


class Fire(nn.Module):
    """Two convolutions side by side whose widths meet in a concatenation and the layer behind it."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 3, padding=1)
        self.join, self.head = nn.Conv2d(32, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        sides = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.head(torch.relu(self.join(sides)).mean((2, 3)))


def test_widths_that_share_a_cost_are_not_chosen_apart():
    network = trace(Fire(), np.zeros((1, 3, 8, 8), np.float32), name="fire")
    target = load_target(str(EDGE / "edge-asic-4bit.yaml"))
    space = build_space(network.source, target, SpaceConfig(granularity=2), isa=())
    prices = synthetic(network, target)
    pricing = Pricing(network.source, space, prices, loss)
    assert {"keep:left", "keep:right"} <= set(pricing.segments)
    for candidate in drawn(pricing.space, network.source, 25):
        assert pricing.price_ms(candidate) == pytest.approx(prices.predict(candidate)[0], rel=1e-9)


def test_solving_again_reads_no_candidate(network):
    space, prices, _ = setting(network, "edge")
    read = []
    counted = dataclasses.replace(prices, units=lambda candidate: read.append(1) or prices.units(candidate))
    pricing = Pricing(network.source, space, counted, loss)
    built = len(read)
    pricing.chart(np.full(len(pricing.segments), 2.0))
    assert 0 < built == len(read)


# --------------------------------------------------------------------------- the best there is


@pytest.fixture(scope="module")
def tiny(small):
    """A space small enough to try everything, with bits, widths inside and across segments, and a branch to drop."""
    space, prices, predictor = setting(small, "edge")
    precisions = {name: offered[-1:] for name, offered in space.precisions.items()}
    precisions |= dict.fromkeys(("layer1.0.conv2", "layer2.0.conv1", "layer3.0.conv2"), ("int2", "int8", "fp32"))
    precisions["linear"] = ("int8", "fp32")
    widths = {"layer1.0.conv1": (8, 16), "layer2.0.conv2": (16, 24, 32), "layer3.0.conv1": (16, 40, 64)}
    space = dataclasses.replace(space, precisions=precisions, widths=widths)
    numbers = [dict(enumerate(range(d.size))) for d in dimensions(space)]
    names = [d.name for d in dimensions(space)]
    every = {}
    for values in product(*numbers):
        candidate = decode(space, small.source, dict(zip(names, values, strict=True)))
        every[candidate.key] = candidate
    latency = np.array([predictor(candidate)[0] for candidate in every.values()])
    return small.source, space, prices, predictor, list(every.values()), latency


@pytest.mark.parametrize("seed", range(4))
def test_the_best_candidate_within_a_limit_is_found(tiny, seed):
    source, space, prices, predictor, every, latency = tiny
    rng = np.random.default_rng(seed)
    known = {}

    def random_loss(*choice):
        return known.setdefault(choice, float(rng.exponential()))

    pricing = Pricing(source, space, prices, random_loss)
    weights = rng.uniform(0.5, 2, len(pricing.segments))
    losses = np.array([pricing.surrogate(candidate, weights) for candidate in every])
    step = np.ptp(latency) / 500
    for limit in rng.uniform(latency.min() + step, latency.max(), 6):
        found = pricing.solve_for(limit, weights)
        assert predictor(found)[0] <= limit
        assert pricing.surrogate(found, weights) <= losses[latency <= limit - step].min() + 1e-9
        assert pricing.surrogate(found, weights) >= losses[latency <= limit].min() - 1e-9


def test_a_limit_on_size_holds_as_well(tiny):
    source, space, prices, predictor, every, latency = tiny
    counts, full = layer_counts(source), {group.name: group.channels for group in source.groups}

    def size(candidate):
        keep = {**full, **candidate.keep}
        return sum(counts[layer].size_bytes(keep, name) for layer, name in candidate.precision.items())

    sizes = np.array([size(candidate) for candidate in every])
    pricing = Pricing(source, space, prices, loss)
    weights = np.ones(len(pricing.segments))
    losses = np.array([pricing.surrogate(candidate, weights) for candidate in every])
    limit_ms, limit_bytes = np.quantile(latency, 0.5), np.quantile(sizes, 0.2)
    found = pricing.best(weights, {"latency_ms": limit_ms, "size_bytes": limit_bytes})
    assert size(found) <= limit_bytes
    assert predictor(found)[0] <= limit_ms
    fits = (latency <= limit_ms) & (sizes <= limit_bytes)
    assert pricing.surrogate(found, weights) == pytest.approx(losses[fits].min(), abs=1e-5)
    chart = pricing.chart(weights, {"size_bytes": limit_bytes})
    excess = []
    for row in range(len(chart)):
        assert size(chart.candidate(row)) <= limit_bytes
        best = losses[(latency <= chart.latency_ms[row] * (1 + 1e-9)) & (sizes <= limit_bytes)].min()
        excess.append(chart.loss[row] / best - 1)
    assert -1e-9 < min(excess) <= np.mean(excess) < 0.05


def test_an_impossible_limit_says_what_is_possible(tiny):
    source, space, prices, _, _, latency = tiny
    pricing = Pricing(source, space, prices, loss)
    with pytest.raises(
        ConfigError, match=rf"no candidate meets `latency_ms`\n.*the least possible is {latency.min():.3f}"
    ):
        pricing.solve_for(latency.min() / 2, np.ones(len(pricing.segments)))


def test_a_choice_that_failed_is_never_made(tiny):
    source, space, prices, _, _, _ = tiny
    bad = ("precision", "layer2.0.conv1", "int2")
    pricing = Pricing(source, space, prices, lambda *choice: np.inf if choice == bad else loss(*choice))
    chart = pricing.chart(np.ones(len(pricing.segments)))
    chosen = {chart.candidate(row).precision["layer2.0.conv1"] for row in range(len(chart))}
    assert chosen == {"int8", "fp32"}


# --------------------------------------------------------------------------- segments, sizes, and no table


def test_segments_are_branches_and_layers_that_share_a_width(network):
    space, _, _ = setting(network, "edge")
    found = segments_of(network.source, space)
    assert [segment.layers for segment in found[:4]] == [
        ("conv1",),
        ("layer1.0.conv1", "layer1.0.conv2"),
        ("layer1.1.conv1", "layer1.1.conv2"),
        ("layer2.0.conv1", "layer2.0.conv2"),
    ]
    assert [segment.name for segment in found if segment.droppable] == list(space.droppable)
    assert sorted(layer for segment in found for layer in segment.layers) == sorted(space.precisions)


def test_layers_are_counted_like_those_of_the_pruned_network(network):
    counts, full = layer_counts(network.source), {group.name: group.channels for group in network.source.groups}
    for layer in network.source.layers:
        inputs, outputs = (w.channels(full) for w in (counts[layer.name].inputs, counts[layer.name].outputs))
        assert counts[layer.name].macs(inputs, outputs) == pytest.approx(layer.macs)
        assert counts[layer.name].size_bytes(full, "fp32") == pytest.approx(4 * layer.params)
    half = {**full, "layer3.0.conv2": 32}
    assert counts["linear"].size_bytes(half, "int8") == 32 * 10 + 10 * 4


def test_without_a_table_measurements_give_prices(network):
    space, _, device = setting(network, "onnxruntime")
    proxy = ProxyPredictor(network.source)
    with pytest.raises(ConfigError, match="measured yet"):
        proxy.listed()
    for candidate in baselines(space).values():
        proxy.learn(candidate, device(candidate)[0])
    assert proxy(uniform(network.source, "int8"))[0] == pytest.approx(
        device(uniform(network.source, "int8"))[0], rel=0.1
    )
    pricing = Pricing(network.source, space, proxy.listed(), loss)
    weights = np.ones(len(pricing.segments))
    for candidate in drawn(space, network.source, 10):
        assert pricing.price_ms(candidate) == pytest.approx(proxy(candidate)[0], rel=1e-6)
    for candidate in drawn(space, network.source, 10):
        proxy.learn(candidate, device(candidate)[0])
    chart = pricing.chart(weights)
    for row in (0, len(chart) // 2):
        assert chart.latency_ms[row] == pytest.approx(proxy(chart.candidate(row))[0], rel=0.01)
    errors = [abs(proxy(c)[0] / device(c)[0] - 1) for c in drawn(space, network.source, 40, seed=5)]
    assert np.mean(errors) < 0.2
