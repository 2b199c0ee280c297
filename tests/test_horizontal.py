"""Sibling layers merged into one: the same numbers from fewer nodes, and kept only where a measurement says so."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from hwsearch.backends.base import RunOptions
from hwsearch.backends.horizontal import merge, siblings
from hwsearch.backends.merging import Merging, merge_where_faster
from hwsearch.backends.timing import Comparison, TimingPolicy
from hwsearch.cli.main import main
from hwsearch.testing.networks import Builder

QUICK = TimingPolicy(rounds=6, min_rounds=4, seconds=0.05)


def inception(relu=True):
    """Three 1x1 convolutions and a 3x3 one of the same tensor, concatenated."""
    net = Builder()
    stem = net.op("Relu", net.conv("stem", "input", 3, 8))
    branches = [net.conv(f"b{i}", stem, 8, 4 + i, 1) for i in range(3)] + [net.conv("wide", stem, 8, 4)]
    ends = [net.op("Relu", branch) for branch in branches] if relu else branches
    joined = net.op("Concat", *ends, axis=1)
    last = net.conv("last", joined, 4 + 5 + 6 + 4, 3, 1)
    return net.finish((3, 8, 8), last, (3, 8, 8))


def apart():
    """Two siblings whose parts go different ways, and one that is read with a stride."""
    net = Builder()
    left, right = net.conv("left", "input", 3, 6), net.conv("right", "input", 3, 4)
    net.conv("strided", "input", 3, 4, strides=[2, 2])
    grown = net.conv("grown", right, 4, 6, 1)
    return net.finish((3, 8, 8), net.op("Add", net.op("Relu", left), grown), (6, 8, 8))


def heads():
    """Two linear layers on a vector, one of which ends in a ReLU and so stands alone; and two more that do not."""
    net = Builder()
    first, second = net.gemm("first", "input", 8, 4), net.gemm("second", "input", 8, 6)
    third = net.op("Relu", net.gemm("third", "input", 8, 10))
    return net.finish((8,), net.op("Add", net.op("Concat", first, second, axis=-1), third), (10,))


def tokens():
    """Query and key of the same tokens, as products with their additions."""
    net = Builder()
    query, key = net.matmul("query", "input", 8, 6), net.matmul("key", "input", 8, 6)
    return net.finish((5, 8), net.op("Mul", query, key), (5, 6))


def outputs(model):
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = [2 if isinstance(side, str) else side for side in session.get_inputs()[0].shape]
    return session.run(None, {"input": rng.standard_normal(shape).astype(np.float32)})[0]


@pytest.mark.parametrize(
    ("model", "expected", "fewer"),
    [
        (inception(), [("b0", "b1", "b2")], 4),  # two convolutions and two ReLUs
        (inception(relu=False), [("b0", "b1", "b2")], 2),
        (apart(), [], 0),  # `left` ends in a ReLU
        (heads(), [("first", "second")], 1),  # a layer; the concatenation stays, with one input
        (tokens(), [("query", "key")], 1),  # a product and an addition less, a split more
    ],
)
def test_merged_layers_compute_the_same_from_fewer_nodes(model, expected, fewer):
    found = siblings(model)
    assert found == expected
    for names in found:
        merged = merge(model, names)
        onnx.checker.check_model(merged, full_check=True)
        assert len(model.graph.node) - len(merged.graph.node) == fewer
        assert np.allclose(outputs(merged), outputs(model), rtol=1e-5, atol=1e-6)


def test_parts_that_go_different_ways_are_split_again():
    net = Builder()
    left, right = net.conv("left", "input", 3, 6), net.conv("right", "input", 3, 4)
    model = net.finish((3, 8, 8), net.op("Add", left, net.conv("grown", right, 4, 6, 1)), (6, 8, 8))
    merged = merge(model, ("left", "right"))
    assert [node.op_type for node in merged.graph.node] == ["Conv", "Split", "Conv", "Add"]
    assert np.allclose(outputs(merged), outputs(model), rtol=1e-5, atol=1e-6)


def test_a_concatenation_in_another_order_is_kept_in_that_order():
    net = Builder()
    one, two = net.conv("one", "input", 3, 5, 1), net.conv("two", "input", 3, 4, 1)
    model = net.finish((3, 8, 8), net.conv("last", net.op("Concat", two, one, axis=1), 9, 3, 1), (3, 8, 8))
    merged = merge(model, siblings(model)[0])
    assert "Split" not in [node.op_type for node in merged.graph.node]
    assert np.allclose(outputs(merged), outputs(model), rtol=1e-5, atol=1e-6)


def test_layers_that_differ_are_no_siblings():
    net = Builder()
    kinds = [
        net.conv("kernel", "input", 4, 4, 3),
        net.conv("pointwise", "input", 4, 4, 1),
        net.conv("strided", "input", 4, 4, 1, strides=[2, 2]),
        net.conv("grouped", "input", 4, 4, 1, group=2),
        net.conv("grouped2", "input", 4, 4, 1, group=2),
    ]
    assert siblings(net.finish((4, 8, 8), kinds[0], (4, 8, 8))) == []


def test_only_what_is_measured_to_be_faster_is_merged(tmp_path):
    path = tmp_path / "inception.onnx"
    onnx.save(inception(), path)
    merged, tried = merge_where_faster(path, "onnxruntime", RunOptions(), QUICK)
    assert [found.layers for found in tried] == [("b0", "b1", "b2")]
    assert (len(merged.graph.node) < len(inception().graph.node)) == tried[0].kept
    assert np.allclose(outputs(merged), outputs(inception()), rtol=1e-5, atol=1e-6)
    tied = Comparison(ratio=0.99, ci95=(0.97, 1.01), verdict="tied")
    assert not Merging(layers=("a", "b"), comparison=tied).kept


def test_nothing_to_merge_is_said(tmp_path, capsys):
    path = tmp_path / "apart.onnx"
    onnx.save(apart(), path)
    assert main(["merge", str(path), "--out", str(tmp_path / "out.onnx"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "out": None, "groups": []}
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runtimes_fold_batch_norm_bias_and_activation_into_the_convolution(name, precision, tmp_path):
    """What is folded before export, and what the runtime fuses, leaves no operation of its own."""
    import torch
    from torch import nn

    from hwsearch.backends.base import LowerRequest, get_backend
    from hwsearch.model.graph import trace
    from hwsearch.model.template import folded_parameters
    from hwsearch.types import TensorRange

    backend = get_backend(name)
    if not backend.availability().ok:
        pytest.skip(f"{name} is not here")
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    network = trace(nn.Sequential(block, second).eval(), np.zeros((1, 3, 8, 8), np.float32), name="block")
    model = network.template.bind(folded_parameters(network.module, network.template.folded))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    asked = dict.fromkeys([layer.name for layer in network.source.layers], precision)
    ranges = {name: TensorRange(low=-3.0, high=3.0) for name in backend.tensors_to_observe(model, asked)}
    options = RunOptions()
    artifact = backend.build(backend.lower(model, LowerRequest(precision=asked, ranges=ranges)), tmp_path, options)
    units = backend.inspect(artifact, asked, options)
    assert {layer for unit in units for layer in unit.source_layers} == set(asked)
    assert not [unit.kind for unit in units if unit.kind.lower() in ("relu", "batchnormalization", "add")]
