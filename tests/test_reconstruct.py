import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.compress import statistics
from hwsearch.compress.fold import Flow, fold
from hwsearch.compress.least_squares import record_goals, refit, solve
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.compress.select import Reader, compensated, damped, removal_order
from hwsearch.compress.statistics import sample_positions, second_moments, take_inputs, take_outputs
from hwsearch.compress.stitch import stitch
from hwsearch.model.graph import trace
from hwsearch.types import Candidate
from hwsearch.zoo.resnet import ResNet


def images(count, seed=0, size=16):
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def candidate(network, keep=None, dropped=()):
    gone = {layer for branch in network.source.branches if branch.name in dropped for layer in branch.layers}
    precision = {layer.name: "fp32" for layer in network.source.layers if layer.name not in gone}
    return Candidate(keep=keep or {}, dropped=tuple(dropped), precision=precision)


def outputs(module, inputs):
    with torch.no_grad():
        return module(torch.from_numpy(inputs))


def relative_error(found, expected):
    return float((found - expected).norm() / (expected - expected.mean(0)).norm())


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    module = ResNet(1, 10, width=0.5).eval()
    reestimate_batch_norm(module, images(64))
    return trace(module, images(1), name="resnet")


class Separable(nn.Module):
    """Expand, depthwise, project around a shortcut, as in MobileNetV2; then a grouped convolution and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(8, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.classify = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        inner = self.depthwise(self.norm(self.expand(x)).relu()).relu()
        x = x + self.project(inner)
        return self.classify(self.grouped(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def separable():
    torch.manual_seed(1)
    module = Separable().eval()
    reestimate_batch_norm(module, images(64))
    return trace(module, images(1), name="separable")


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
    inputs = torch.from_numpy(images(10))
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


# --------------------------------------------------------------------------- whole networks


def test_folding_changes_nothing(resnet):
    plain = fold(resnet.module, resnet.template.folded)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    torch.testing.assert_close(outputs(plain, images(4)), outputs(resnet.module, images(4)), atol=1e-4, rtol=1e-4)


def test_flow_knows_sums_relus_and_what_lies_behind_a_change(resnet):
    flow = Flow.of(resnet.template)
    assert flow.joined == {
        "layer1.0.conv2",
        "layer2.0.conv2",
        "layer2.0.shortcut",
        "layer3.0.conv2",
        "layer3.0.shortcut",
    }
    assert flow.rectified == set(resnet.template.layers) - {"linear"}
    assert flow.stale(["layer3.0.conv1"]) == ("layer3.0.conv2", "linear")
    assert flow.stale([]) == ()
    assert set(flow.stale(["conv1"])) == set(resnet.template.layers) - {"conv1"}


def test_an_unpruned_candidate_is_left_as_it_is(resnet):
    reconstructor = Reconstructor(resnet, images(8))
    found, expected = reconstructor.repaired(candidate(resnet)), fold(resnet.module, resnet.template.folded)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def with_duplicates(network, groups):
    """The network with the second half of each group's channels copies of the first half, in all that writes them."""
    module = copy.deepcopy(network.module)
    for group in network.source.groups:
        half = group.channels // 2
        for axis in group.axes if group.name in groups else ():
            layer = module.get_submodule(axis.module)
            if axis.side == "out":
                for value in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                    if value.ndim > 0:
                        value.data[half : 2 * half] = value.data[:half]
    return replace(network, module=module)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("resnet", ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]),
        ("resnet", ["conv1", "layer2.0.conv2", "layer3.0.conv2"]),
        ("separable", ["expand"]),
    ],
    ids=["inner", "stage", "depthwise"],
)
def test_redundant_channels_are_removed_without_loss(name, groups, request):
    network = with_duplicates(request.getfixturevalue(name), groups)
    keep = {group.name: group.channels // 2 for group in network.source.groups if group.name in groups}
    assert len(keep) == len(groups)
    reconstructor = Reconstructor(network, images(48), settings=Settings(damping=1e-6, ridge=1e-6))
    for group, kept in reconstructor.select(keep).items():
        assert len(set(kept % keep[group])) == keep[group], "one of each pair must stay"
    fresh = images(16, seed=5)
    repaired = reconstructor.repaired(candidate(network, keep))
    assert relative_error(outputs(repaired, fresh), outputs(network.module, fresh)) < 5e-3


def test_least_squares_beats_compensation_alone_beats_magnitude(resnet):
    keep = {group.name: max(1, group.channels // 2) for group in resnet.source.groups}
    fresh, calibration = images(64, seed=9), images(64)
    expected = outputs(resnet.module, fresh)
    obs = Reconstructor(resnet, calibration)
    plain = Reconstructor(resnet, calibration, settings=Settings(selection="magnitude"))
    errors = [
        relative_error(outputs(module, fresh), expected)
        for module in (
            obs.repaired(candidate(resnet, keep)),
            obs.stitched(candidate(resnet, keep)),
            plain.stitched(candidate(resnet, keep)),
        )
    ]
    assert errors == sorted(errors)


def test_only_layers_whose_input_differs_are_refitted(separable):
    reconstructor = Reconstructor(separable, images(64))
    chosen = candidate(separable, {"expand": 8})
    before, after = reconstructor.stitched(chosen), reconstructor.repaired(chosen)
    assert not torch.equal(before.grouped.weight, after.grouped.weight)
    for name in ("stem", "expand"):
        assert torch.equal(before.get_submodule(name).weight, after.get_submodule(name).weight)
    torch.testing.assert_close(before.depthwise.weight, after.depthwise.weight)  # it lost channels, and that is all


def test_a_dropped_branch_is_made_up_for_and_stays_silent(resnet):
    chosen = candidate(resnet, dropped=["layer1.0"])
    reconstructor = Reconstructor(resnet, images(64))
    before, after = reconstructor.stitched(chosen), reconstructor.repaired(chosen)
    assert not after.layer1[0].conv2.weight.any()
    assert torch.equal(before.conv1.weight, after.conv1.weight), "nothing before the branch changes"
    fresh = images(32, seed=9)
    expected = outputs(resnet.module, fresh)
    assert relative_error(outputs(after, fresh), expected) < relative_error(outputs(before, fresh), expected)


def test_repairs_are_reproducible_and_cached(resnet, tmp_path):
    keep = {group.name: max(1, group.channels // 2) for group in resnet.source.groups}
    chosen = candidate(resnet, keep)
    first = Reconstructor(resnet, images(16), folder=tmp_path).repaired(chosen)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = Reconstructor(resnet, images(16), folder=tmp_path).repaired(chosen)
    memory = Reconstructor(resnet, images(16)).repaired(chosen)
    assert files
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, memory.state_dict()[name])
    Reconstructor(resnet, images(16, seed=1), folder=tmp_path).stitched(chosen)
    assert len(list(tmp_path.iterdir())) == 2 * len(files), "other images, other pieces"


def test_a_candidate_does_not_depend_on_those_before_it(resnet):
    inner = {group.name: 2 for group in resnet.source.groups if group.kind == "inner"}
    shared = Reconstructor(resnet, images(16))
    shared.repaired(candidate(resnet, {group.name: 2 for group in resnet.source.groups}))
    one, other = (
        shared.repaired(candidate(resnet, inner)),
        Reconstructor(resnet, images(16)).repaired(candidate(resnet, inner)),
    )
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_refitting_on_fewer_images_is_as_if_there_were_no_others(resnet):
    chosen = candidate(resnet, {"layer1.0.conv1": 4}, dropped=())
    settings_ = Settings(selection="magnitude", rows=10**6)
    some = Reconstructor(resnet, images(32), settings=settings_).repaired(chosen, images=12)
    alone = Reconstructor(resnet, images(32)[:12], settings=settings_).repaired(chosen)
    for name, value in some.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("repair", ["least_squares", "batch_norm", "none"])
@pytest.mark.parametrize("selection", ["obs", "magnitude"])
def test_every_repair_binds_into_the_template(resnet, tmp_path, repair, selection):
    import onnxruntime

    keep = {group.name: max(1, group.channels // 2) for group in resnet.source.groups if group.name != "layer1.0.conv1"}
    chosen = candidate(resnet, keep, dropped=["layer1.0"])
    calibration, fresh = images(32), images(4, seed=1)
    made = stitch(resnet, chosen, tmp_path / "m.onnx", calibration=calibration, repair=repair, selection=selection)
    found = onnxruntime.InferenceSession(made.path).run(None, {"input": fresh})[0]
    assert found.shape == (4, 10)
    if repair == "batch_norm":
        return
    reconstructor = Reconstructor(resnet, calibration, settings=Settings(selection=selection))
    module = reconstructor.repaired(chosen) if repair == "least_squares" else reconstructor.stitched(chosen)
    np.testing.assert_allclose(found, outputs(module, fresh).numpy(), atol=1e-3, rtol=1e-3)


class InPlaceSum(nn.Module):
    """Sums written in every way a network may write them, one of them into the shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.outer = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.classify = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x = torch.add(x, self.outer[0](self.inner[0](x).relu())).relu()
        branch = self.outer[1](self.inner[1](x).relu())
        branch += x
        shortcut = branch.relu()
        shortcut.add_(self.outer[2](self.inner[2](shortcut).relu()))
        return self.classify(shortcut.relu().mean((2, 3)))


@pytest.fixture(scope="module")
def sums():
    torch.manual_seed(0)
    return trace(InPlaceSum().eval(), images(1), name="sums")


def test_sums_are_recognised_however_they_are_written(sums):
    goals = record_goals(sums.module, Flow.of(sums.template), torch.from_numpy(images(4)), rows=100)
    assert {name for name, goal in goals.items() if goal.in_sum} == {"outer.0", "outer.1", "outer.2"}
    assert goals.keys() == set(sums.template.layers)


def test_of_two_layers_in_one_sum_the_larger_aims_at_it(resnet):
    original = fold(resnet.module, resnet.template.folded)
    goals = record_goals(original, Flow.of(resnet.template), torch.from_numpy(images(4)), rows=100)
    blocks = [f"layer{stage}.0.conv2" for stage in (1, 2, 3)]
    assert {name for name, goal in goals.items() if goal.in_sum} == set(blocks)


@pytest.mark.parametrize("name", ["resnet", "separable", "sums"])
def test_refitting_finds_lost_weights_again(name, request):
    """Every layer, grouped, depthwise, linear or ending in a sum, whatever its weights were set to."""
    network = request.getfixturevalue(name)
    flow, calibration = Flow.of(network.template), torch.from_numpy(images(64))
    original, broken = (fold(network.module, network.template.folded) for _ in range(2))
    goals = record_goals(original, flow, calibration, rows=4000)
    for layer in network.template.layers:
        broken.get_submodule(layer).weight.zero_()
        broken.get_submodule(layer).bias.fill_(1.0)
    refit(broken, network.template.layers, goals, flow, {}, calibration, ridge=1e-8, rectify=0)
    fresh = images(16, seed=4)
    assert relative_error(outputs(broken, fresh), outputs(original, fresh)) < 1e-2
    assert not any("forward" in vars(layer) for layer in broken.modules())
