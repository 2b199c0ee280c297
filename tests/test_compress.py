import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.compress.prune import select_channels, slice_module
from hwsearch.compress.quantize import ranges
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.compress.stitch import stitch
from hwsearch.errors import ConfigError
from hwsearch.model.graph import trace
from hwsearch.model.template import folded_parameters
from hwsearch.space.space import uniform
from hwsearch.types import Candidate, Observation
from hwsearch.zoo.resnet import ResNet

PLAIN = {"repair": "none", "selection": "magnitude"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = ResNet(1, 10, width=0.5).eval()
    reestimate_batch_norm(module, images(64))
    return trace(module, images(1), name="small")


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)


def run(path, inputs):
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, {"input": inputs})[0]


def without(candidate, source, *dropped):
    gone = {layer for branch in source.branches if branch.name in dropped for layer in branch.layers}
    precision = {name: p for name, p in candidate.precision.items() if name not in gone}
    return Candidate(keep=candidate.keep, dropped=dropped, precision=precision)


def test_the_uncompressed_candidate_is_the_original(network, tmp_path):
    compressed = stitch(network, uniform(network.source, "fp32"), tmp_path / "m.onnx", calibration=images(8))
    inputs = images(4, seed=1)
    expected = network.module(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(run(compressed.path, inputs), expected, atol=1e-4)
    assert compressed.macs == sum(layer.macs for layer in network.source.layers)
    assert compressed.params == sum(layer.params for layer in network.source.layers)


def test_the_file_computes_what_the_pruned_network_does(network, tmp_path):
    source = network.source
    keep = {group.name: group.channels // 2 for group in source.groups}
    candidate = Candidate(keep=keep, dropped=(), precision=uniform(source, "fp32").precision)
    compressed = stitch(network, candidate, tmp_path / "m.onnx", calibration=images(32), **PLAIN)
    kept = select_channels(folded_parameters(network.module, network.template.folded), source, keep)
    inputs = images(4, seed=1)
    expected = slice_module(network.module, source, kept)(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(run(compressed.path, inputs), expected, atol=1e-4)
    assert compressed.params < sum(layer.params for layer in source.layers) / 3


def test_a_dropped_branch_adds_nothing_and_leaves_the_graph(network, tmp_path):
    source = network.source
    candidate = without(uniform(source, "fp32"), source, source.branches[0].name)
    compressed = stitch(network, candidate, tmp_path / "m.onnx", calibration=images(32), **PLAIN)
    silent = copy.deepcopy(network.module)
    silent.layer1[0].bn2.weight.data.zero_()
    silent.layer1[0].bn2.bias.data.zero_()
    inputs = images(4, seed=1)
    np.testing.assert_allclose(
        run(compressed.path, inputs), silent(torch.from_numpy(inputs)).detach().numpy(), atol=1e-4
    )
    nodes = {node.name for node in onnx.load(compressed.path).graph.node}
    assert not nodes & set(source.branches[0].layers)
    assert "hwsearch.key" in {prop.key for prop in onnx.load(compressed.path).metadata_props}


def test_slicing_leaves_the_original_alone(network):
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    group = network.source.groups[0]
    slice_module(network.module, network.source, {group.name: np.arange(2)})
    assert all(torch.equal(before[name], value) for name, value in network.module.state_dict().items())


def test_the_strongest_channels_are_kept(network):
    parameters = dict(folded_parameters(network.module, network.template.folded))
    group = next(group for group in network.source.groups if group.kind == "inner")
    weak = np.array([1, 3])
    for axis in group.axes:
        name = f"{axis.module}.weight"
        if name in parameters:
            parameters[name] = parameters[name].copy()
            parameters[name][(weak,) if axis.side == "out" else (slice(None), weak)] *= 1e-3
    chosen = select_channels(parameters, network.source, {group.name: group.channels - 2})[group.name]
    assert not set(weak) & set(chosen)
    assert list(chosen) == sorted(chosen)


def test_reestimated_statistics_are_those_of_the_images():
    module = nn.Sequential(nn.BatchNorm2d(3)).eval()
    inputs = images(64) * 3 + 1
    reestimate_batch_norm(module, inputs, batch=64)
    np.testing.assert_allclose(module[0].running_mean.numpy(), inputs.mean((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(module[0].running_var.numpy(), inputs.var((0, 2, 3), ddof=1), rtol=1e-3)
    assert not module[0].training
    assert module[0].momentum == 0.1


def histogram(values, bins=2048):
    counts, _ = np.histogram(values, bins, (values.min(), values.max()))
    return Observation(low=float(values.min()), high=float(values.max()), counts=tuple(int(c) for c in counts))


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_range_methods_cut_an_outlier_off(method):
    values = np.append(np.abs(np.random.default_rng(0).standard_normal(200_000)), 30.0)
    found = ranges({"t": histogram(values)}, method)["t"]
    assert found.high < 28
    assert ranges({"t": histogram(values)}, "minmax")["t"].high == 30.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["minmax", "percentile", "mse", "entropy"]))
def test_ranges_stay_inside_what_was_seen(seed, method):
    values = np.random.default_rng(seed).standard_normal(500) + seed % 3
    seen = histogram(values, 128)
    found = ranges({"t": seen}, method)["t"]
    assert seen.low - 1e-6 <= found.low <= found.high <= seen.high + 1e-6


def test_mse_beats_minmax_on_its_own_measure():
    values = np.random.default_rng(1).laplace(size=100_000)
    seen = histogram(values)

    def error(interval):
        step = (interval.high - interval.low) / 255
        clipped = np.clip(values, interval.low, interval.high)
        return np.mean((values - (np.round((clipped - interval.low) / step) * step + interval.low)) ** 2)

    assert error(ranges({"t": seen}, "mse")["t"]) < error(ranges({"t": seen}, "minmax")["t"])


def test_an_unknown_range_method_is_refused():
    with pytest.raises(ConfigError, match="unknown range method `minmix`"):
        ranges({}, "minmix")
