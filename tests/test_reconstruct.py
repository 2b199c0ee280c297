"""Repair of whole networks: what is removed, what is refitted, what stays as it was."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hwsearch.compress.fold import Flow, fold
from hwsearch.compress.least_squares import record_goals, refit
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.recover import reestimate_batch_norm
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
