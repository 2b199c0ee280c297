"""Latency tables: units of a network, the fit, predictions that learn. Nothing is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwsearch.backends.flow import read_flow
from hwsearch.backends.rewrite import Graph
from hwsearch.config import SpaceConfig
from hwsearch.errors import ConfigError
from hwsearch.latency.build import target_device
from hwsearch.latency.design import Drawer, choose, reachable_axes
from hwsearch.latency.fit import Equation, fit
from hwsearch.latency.grid import Axes, multiplications
from hwsearch.latency.kernels import CALL, Kind, compiled_units
from hwsearch.latency.micro import pieces, plausible_ranges
from hwsearch.latency.network import NetworkUnits, integer_flow, quantizer_rule
from hwsearch.latency.plan import read_plan
from hwsearch.latency.residual import Residual
from hwsearch.latency.table import LatencyTable
from hwsearch.latency.validate import TEMPTED, Point, summarise, tempting
from hwsearch.model.graph import trace
from hwsearch.space.space import build_space, uniform
from hwsearch.space.target import load_target
from hwsearch.types import Candidate
from hwsearch.zoo.mobilenet_v2 import mobilenet_v2
from hwsearch.zoo.resnet import ResNet
from hwsearch.zoo.vit import ViT

EXAMPLE = Path(__file__).parents[1] / "latency_tables" / "example-edge-asic"
KIND = Kind("conv", "3x3", "8x8", "fp32")


@pytest.fixture(scope="module")
def network():
    return trace(ResNet(2, 10).eval(), np.zeros((1, 3, 32, 32), np.float32), name="resnet14")


@pytest.fixture(scope="module")
def ort(network):
    target = load_target("ort-cpu")
    space = build_space(network.source, target, SpaceConfig(), isa=())
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    return reader, Drawer(network, space, reader)


@pytest.fixture(scope="module")
def edge(network):
    target = load_target(str(EXAMPLE / "edge-asic-4bit.yaml"))
    space = build_space(network.source, target, SpaceConfig(), isa=())
    table = LatencyTable.open(EXAMPLE, target_device(target))
    reader = NetworkUnits(network.source, network.template, integer_flow)
    return table.predictor(network.source, target, network.template), Drawer(network, space, reader, seed=3), reader


# --------------------------------------------------------------------------- units


def test_every_layer_is_one_unit_in_its_precision(network, ort):
    reader, drawer = ort
    for _ in range(10):
        candidate = drawer.candidate()
        layers = [unit for unit in reader.units(candidate) if unit.kind.unit in ("conv", "linear")]
        assert sorted(unit.kind.precision for unit in layers) == sorted(candidate.precision.values())


class LooseActivation(nn.Module):
    """Dropping the branch leaves a ReLU by itself: it cannot fold into the stem, which another layer reads too."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.left, self.right = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        y = nn.functional.relu(x + self.branch(x))
        return self.head((self.left(y) + self.right(x)).mean((2, 3)))


NETWORKS = {
    "resnet": lambda: ResNet(2, 10),
    "mobilenet": lambda: mobilenet_v2(width=0.25),
    "vit": lambda: ViT(10, heads=2, head_size=16, depth=2),
    "loose activation": LooseActivation,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_candidates_like_none_before_have_the_units_of_the_model_that_would_be_built(name):
    network = trace(NETWORKS[name]().eval(), np.zeros((1, 3, 32, 32), np.float32), name=name)
    for target in (load_target(each) for each in ("ort-cpu", "openvino-cpu", str(EXAMPLE / "edge-asic-4bit.yaml"))):
        reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
        space = build_space(network.source, target, SpaceConfig(), isa=("avx512_bf16",))
        drawer = Drawer(network, space, reader, seed=5)
        for candidate in (drawer.candidate(any_width=True) for _ in range(4)):
            keep = {**reader.full, **candidate.keep}
            assert built_units(reader, drawer, candidate) == [
                (u.kind, u.inputs.channels(keep), u.outputs.channels(keep)) for u in reader.units(candidate)
            ]


def built_units(reader, drawer, candidate):
    """Units read from the graph of a candidate with its own weights."""
    template, model, shapes = drawer.bound(candidate)
    flow = read_flow(Graph(model))
    plan = read_plan(flow, model.graph, template.layers, shapes, None)
    quantized = reader.rule(flow, candidate.precision)
    units = compiled_units(plan, quantized, candidate.precision, candidate.float_precision)
    return [(unit.kind, unit.inputs.fixed, unit.outputs.fixed) for unit in units]


def test_a_conversion_is_priced_where_precisions_meet(network, ort):
    reader, _ = ort
    quiet = {unit.kind.unit for unit in reader.units(uniform(network.source, "fp32"))}
    assert not quiet & {"quantize", "dequantize"}
    first, *rest = [layer.name for layer in network.source.layers]
    mixed = Candidate(keep={}, dropped=(), precision={first: "int8"} | dict.fromkeys(rest, "fp32"))
    assert sum(unit.kind.unit == "dequantize" for unit in reader.units(mixed)) == 2  # the branch and its shortcut


def test_a_network_is_cut_between_its_blocks(network):
    template = network.template
    cut = pieces(template.skeleton.graph, template.layers)
    assert len(cut) == 8  # stem, six blocks, head
    assert [piece.reads for piece in cut[1:]] == [piece.writes for piece in cut[:-1]]
    assert sum(len(piece.nodes) for piece in cut) == len(template.skeleton.graph.node)


def test_micro_models_are_valid_and_hold_the_units_they_were_drafted_with(ort):
    reader, drawer = ort
    for draft in drawer.parts(6, 3):
        job = drawer.job(draft)
        onnx.checker.check_model(job.model, full_check=True)
        convolutions = sum(n for (kind, _), n in draft.counts.items() if kind.unit in ("conv", "linear"))
        assert convolutions == len(job.precision)
        assert set(reader.rule(read_flow(Graph(job.model)), job.precision)) <= set(job.ranges)


def test_ranges_start_at_zero_after_a_relu(network):
    ranges = plausible_ranges(network.template.skeleton.graph)
    assert ranges["input"].low < 0
    assert {ranges[node.output[0]].low for node in network.template.skeleton.graph.node if node.op_type == "Relu"} == {
        0
    }


# --------------------------------------------------------------------------- fit


@given(channels=st.integers(8, 64))
def test_interpolation_stays_between_its_neighbours_and_is_exact_on_nodes(channels):
    axes = Axes((8, 24, 64), (8, 24, 64), tied=True)
    weights = axes.weights((channels, channels))
    assert weights is not None
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) >= 0
    assert sum(node[0] * weight for node, weight in weights.items()) == pytest.approx(channels)
    assert axes.weights((7, 7)) is None
    assert axes.weights((65, 65)) is None


def test_the_fit_recovers_the_costs_that_made_the_measurements():
    rng = np.random.default_rng(0)
    axes = {CALL: Axes((1,), (1,), tied=True), KIND: Axes((16, 32, 64), (16, 32, 64), tied=False)}
    true = {node: 0.01 * node[0] * node[1] * rng.uniform(0.8, 1.2) for node in axes[KIND].nodes()}
    equations = [
        Equation({(CALL, (1, 1)): 1, (KIND, node): repeats}, 5 + repeats * cost, 0.01)
        for node, cost in true.items()
        for repeats in (1, 4)
    ]
    entries = fit(equations, axes)
    assert entries[CALL][1, 1].latency_us == pytest.approx(5, abs=1)
    for node, cost in true.items():
        assert entries[KIND][node].latency_us == pytest.approx(cost, rel=0.05)
        assert entries[KIND][node].models == 2


def test_the_micro_models_chosen_tell_more_than_as_many_others(ort):
    reader, drawer = ort
    drafts, wholes = drawer.parts(20, 5), [drawer.candidate() for _ in range(20)]
    axes = reachable_axes([u for c in wholes for u in reader.units(c)], drafts, drawer.widths, reader.full)
    chosen = choose(drafts, [reader.counts(c) for c in wholes], axes, 30)
    assert len({id(draft) for draft in chosen}) == 30
    met = {column for draft in chosen for column in draft.counts}
    assert len(met) > len({column for draft in drafts[:30] for column in draft.counts})


# --------------------------------------------------------------------------- prediction


def test_fewer_bits_and_fewer_layers_are_never_slower_on_the_example_device(network, edge):
    predictor, *_ = edge
    latency = {name: predictor(uniform(network.source, name))[0] for name in ("int8", "fp32")}
    assert latency["int8"] < latency["fp32"]
    layers = {layer.name: layer.op for layer in network.source.layers}
    four = {name: "int4" if op == "conv" else "int8" for name, op in layers.items()}
    narrow = Candidate(keep={}, dropped=(), precision=four)
    gone = network.source.branches[0]
    short = Candidate(keep={}, dropped=(gone.name,), precision={n: p for n, p in four.items() if n not in gone.layers})
    assert predictor(short)[0] < predictor(narrow)[0] < latency["int8"]


def test_every_candidate_of_the_space_has_a_price_and_an_error(edge):
    predictor, drawer, _ = edge
    for _ in range(60):
        latency, sigma = predictor(drawer.candidate(any_width=True))
        assert 0 < sigma < latency


def test_a_missing_entry_is_named_and_gives_no_number(network, edge):
    predictor, *_ = edge
    with pytest.raises(ConfigError, match=r"no entry for .* bf16"):
        predictor(uniform(network.source, "bf16"))


def test_learning_removes_an_error_of_one_family_and_narrows_the_rest():
    rng = np.random.default_rng(1)
    residual = Residual(4, 0.005)
    before = residual.apply([10, 10, 10, 10])
    for _ in range(30):
        costs = rng.uniform(5, 20, 4)
        residual.learn(costs, float(costs.sum() + 0.1 * costs[2]))
    latency, variance = residual.apply([10, 10, 10, 10])
    assert before[0] == pytest.approx(40)
    assert latency == pytest.approx(41, rel=0.005)
    assert residual.apply([10, 10, 20, 0])[0] == pytest.approx(42, rel=0.01)
    assert variance < (0.03 * latency) ** 2


def test_a_table_for_another_batch_is_refused(network):
    target = load_target(str(EXAMPLE / "edge-asic-4bit.yaml"), batch=8)
    with pytest.raises(ConfigError, match="is for batch 1"):
        LatencyTable.load(EXAMPLE).predictor(network.source, target, network.template)


def test_models_that_look_best_are_beaten_by_no_other_that_was_drawn(network, edge):
    predictor, _, reader = edge
    space = build_space(network.source, load_target(str(EXAMPLE / "edge-asic-4bit.yaml")), SpaceConfig(), isa=())
    found = tempting(Drawer(network, space, reader, seed=9), reader, predictor, 8)
    drawer = Drawer(network, space, reader, seed=9)
    points = [(predictor(c)[0], multiplications(reader.counts(c))) for c in found]
    assert 2 <= len(points) <= 8
    assert points == sorted(points)
    for candidate in (drawer.candidate(any_width=True) for _ in range(TEMPTED)):
        latency, work = predictor(candidate)[0], multiplications(reader.counts(candidate))
        assert not any(latency < own and work > most for own, most in points)


def test_multiplications_of_units_are_those_of_the_layers(network, ort):
    reader, _ = ort
    counted = multiplications(reader.counts(uniform(network.source, "fp32")))
    assert counted == sum(layer.macs for layer in network.source.layers)


def test_error_figures_are_those_of_the_points():
    candidate = Candidate(keep={}, dropped=(), precision={})
    points = [Point(candidate, p, 0.1, m) for p, m in ((1.02, 1.0), (2.0, 2.0), (3.6, 4.0), (8.0, 8.0))]
    check = summarise(points)
    assert check.mape_pct == pytest.approx(3)
    assert check.bias_pct == pytest.approx(-2)
    assert check.max_pct == pytest.approx(10)
    assert (check.within_5_pct, check.spearman) == (75, 1)


# --------------------------------------------------------------------------- end to end


@pytest.mark.slow
def test_build_and_check_a_small_table(tmp_path, network):
    from hwsearch.latency.build import build_table
    from hwsearch.latency.validate import check_table

    target = load_target("ort-cpu")
    config = SpaceConfig(drop_branches=False, granularity=32)
    space = build_space(network.source, target, config, isa=())
    table = build_table(network, space, target, tmp_path, lambda *_: None, models=20)
    found = check_table(table, network, space, target, lambda *_: None, models=4)
    table = table.checked(found.check, found.tempting)
    assert (found.check.models, found.tempting.models) == (6, 2)
    assert all(point.predicted_ms > 0 and point.sigma_ms > 0 for point in found.points)
    with pytest.raises(ConfigError, match="may not be used"):
        LatencyTable.open(tmp_path, table.manifest.device)
