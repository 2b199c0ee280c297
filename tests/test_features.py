"""Distillation from activations: where they are read, and what their distance is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwsearch.compress.distill import Teacher
from hwsearch.compress.features import Watched, stream_ends, with_features
from hwsearch.errors import EvaluationError
from hwsearch.model.distill import Taught
from hwsearch.model.graph import trace
from hwsearch.zoo.mobilenet_v1 import mobilenet_v1
from hwsearch.zoo.resnet import ResNet


def image(size=12):
    return np.zeros((1, 3, size, size), np.float32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trace(ResNet(2, 5, width=0.25).eval(), image(), name="x:y")


def test_streams_end_where_they_are_read_last(network):
    narrow = {group.name: 1 for group in network.source.groups if group.kind == "inner"}
    expected = {"layer2.0.shortcut": 4 * 144, "layer3.0.shortcut": 8 * 36, "layer3.1.conv1": 16 * 9, "linear": 16}
    assert stream_ends(network.source, narrow) == expected
    kept = stream_ends(network.source, narrow | {"layer2.0.conv2": 4})
    assert list(kept) == ["layer2.0.shortcut", "layer3.1.conv1", "linear"]


def test_without_a_whole_stream_there_is_nothing_to_compare(network):
    halves = {group.name: group.channels // 2 for group in network.source.groups}
    plain = trace(mobilenet_v1(5, width=0.25).eval(), image(32), name="x:y")
    for source, keep in ((network.source, halves), (plain.source, {})):
        with pytest.raises(EvaluationError, match="no activations"):
            stream_ends(source, keep)


def test_a_watched_network_returns_what_its_layers_read(network):
    points = stream_ends(network.source, {})
    torch.manual_seed(1)
    x, seen = torch.randn(2, 3, 12, 12), []
    layer = network.module.get_submodule("layer3.0.shortcut")
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    with torch.inference_mode():
        outputs, *read = Watched(network.module, points)(x).split([5, *points.values()], dim=1)
        handle.remove()
        assert torch.equal(outputs, network.module(x))
    assert torch.equal(read[1], seen[0].flatten(1))


@given(st.floats(-2, 2), st.floats(0.1, 10), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_distance_is_relative(excess, weight, scale):
    points = {"a": 3, "b": 4}
    teacher = torch.cat([torch.ones(2, 5), torch.arange(1.0, 15).reshape(2, 7) * scale], dim=1)
    student = teacher.clone()
    student[:, 5:8] *= 1 + excess
    loss = with_features(lambda outputs, _: outputs.sum(), weight, points)
    found = loss(torch.stack([student, teacher], dim=1), torch.zeros(2))
    assert float(found) == pytest.approx(20 + weight * excess**2 / 2, rel=1e-4, abs=1e-4)


def test_a_network_is_at_no_distance_from_itself(network):
    points = stream_ends(network.source, {})
    taught = Taught(Watched(network.module, points), Teacher(Watched(network.module, points)))
    outputs = taught.eval()(torch.ones(2, 3, 12, 12))
    assert with_features(lambda *_: torch.zeros(()), 1.0, points)(outputs, torch.zeros(2)).item() == 0


def test_gradients_reach_what_lies_before_the_points_and_not_the_teacher(network):
    points = stream_ends(network.source, {})
    teacher = Teacher(Watched(network.module, points))
    student = ResNet(2, 5, width=0.25)
    outputs = Taught(Watched(student, points), teacher)(torch.ones(2, 3, 12, 12))
    with_features(lambda *_: torch.zeros(()), 1.0, points)(outputs, torch.zeros(2)).backward()
    assert isinstance(student.conv1, nn.Conv2d)
    assert float(student.conv1.weight.grad.norm()) > 0
    assert student.linear.weight.grad is None or float(student.linear.weight.grad.norm()) == 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
