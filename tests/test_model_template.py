import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_networks import NETWORKS, traced
from torch import nn

from hwsearch.model.channels import take_channels
from hwsearch.model.graph import trace
from hwsearch.model.template import folded_parameters


def images(name, n=3):
    size = NETWORKS[name][1]
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": inputs.numpy()})[0]


def close(found, expected, tolerance=1e-4):
    return np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_template_computes_what_the_module_computes(name, batch):
    network, inputs = traced(name), images(name, batch)
    model = network.template.bind()
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        assert close(run(model, inputs), network.module(inputs).numpy())


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_nodes_with_weight_and_bias(name):
    network = traced(name)
    nodes = {node.name: node for node in network.template.skeleton.graph.node}
    assert len(nodes) == len(network.template.skeleton.graph.node)
    for layer in network.source.layers:
        node = nodes[layer.name]
        assert node.op_type in ("Conv", "Gemm", "MatMul")
        assert node.input[1] == f"{layer.name}.weight"
        assert f"{layer.name}.bias" in network.template.initializers


def test_resnet_graph_is_clean():
    template = traced("resnet20").template
    kinds = {node.op_type for node in template.skeleton.graph.node}
    assert kinds == {"Conv", "Relu", "Add", "GlobalAveragePool", "Reshape", "Gemm"}
    assert not any(node.metadata_props for node in template.skeleton.graph.node)
    assert not template.skeleton.graph.value_info
    assert len(template.layers) == 22
    assert template.folded["layer1.0.conv1"] == "layer1.0.bn1"
    floats = [t for t in template.initializers.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert len(floats) == 2 * 22


def test_norm_before_its_convolution_stays():
    template = traced("pre-activation").template
    assert "BatchNormalization" in {node.op_type for node in template.skeleton.graph.node}
    assert template.folded == {}
    assert "norm.running_mean" in template.initializers


def test_bind_ignores_names_the_graph_does_not_hold():
    template = traced("concat").template
    model = template.bind({"gone.weight": np.zeros((1, 1), np.float32)})
    assert {t.name for t in model.graph.initializer} == set(template.initializers)


def test_bind_takes_linear_weights_in_pytorch_layout():
    network = traced("transformer")
    assert network.template.transposed >= {"fc1.weight", "fc2.weight", "qkv.weight"}
    parameters = folded_parameters(network.module, network.template.folded)
    assert parameters["fc1.weight"].shape == (24, 16)
    with torch.no_grad():
        expected = network.module(images("transformer")).numpy()
    assert close(run(network.template.bind(parameters), images("transformer")), expected)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["depthwise", "concat", "resnet8-b"])
def test_removing_channels_equals_ignoring_them(name, data):
    """A pruned model equals the whole one whose layers read nothing from the removed channels."""
    network, inputs = traced(name), images(name, 2)
    parameters = folded_parameters(network.module, network.template.folded)
    kept, deaf = {}, {key: array.copy() for key, array in parameters.items()}
    for group in network.source.groups:
        channels = st.lists(st.integers(0, group.channels - 1), min_size=1, unique=True).map(sorted)
        kept[group.name] = data.draw(channels, label=group.name)
        removed = np.setdiff1d(np.arange(group.channels), kept[group.name])
        for axis in group.axes:
            if axis.side == "in":
                entries = axis.offset + removed[:, None] * axis.repeat + np.arange(axis.repeat)
                deaf[f"{axis.module}.weight"][:, entries.ravel()] = 0
    pruned = network.template.bind(take_channels(parameters, network.source.groups, kept))
    whole = network.template.bind(deaf)
    assert close(run(pruned, inputs), run(whole, inputs))
    assert pruned.ByteSize() <= whole.ByteSize()


@pytest.mark.parametrize("names", [["layer1.1"], ["layer1.0", "layer1.1", "layer2.2", "layer3.2"]])
def test_dropping_branches_equals_silencing_them(names):
    network, inputs = traced("resnet20"), images("resnet20")
    branches = [branch for branch in network.source.branches if branch.name in names]
    dropped = network.template.without_branches(branches)
    silent = folded_parameters(network.module, network.template.folded)
    for branch in branches:
        for name in (f"{branch.layers[-1]}.weight", f"{branch.layers[-1]}.bias"):
            silent[name] = np.zeros_like(silent[name])
    assert close(run(dropped.bind(), inputs), run(network.template.bind(silent), inputs))
    assert len(dropped.layers) == 22 - 2 * len(names)
    assert not set(dropped.folded) - set(dropped.layers)
    # The sum, the branch's own ReLU and the ReLU after the sum are gone as well.
    before, after = (len(t.skeleton.graph.node) for t in (network.template, dropped))
    assert before - after == len(names) * 5
    assert len(network.template.layers) == 22


def test_a_branch_that_ends_the_network_can_be_dropped():
    class Tail(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.tail = torch.nn.Linear(4, 6), torch.nn.Linear(6, 6)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return x + self.tail(x)

    network = trace(Tail(), torch.zeros(1, 4), name="tail")
    assert [branch.name for branch in network.source.branches] == ["tail"]
    inputs = torch.randn(2, 4)
    model = network.template.without_branches(network.source.branches).bind()
    with torch.no_grad():
        assert close(run(model, inputs), torch.relu(network.module.stem(inputs)).numpy())


class Parts(nn.Module):
    """Three unequal parts of the channels, in another order."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)

    def forward(self, x):
        one, two, three = self.conv(x).split((1, 2, 3), dim=1)
        return torch.cat([three, one.relu(), two], dim=1)


def test_a_split_becomes_slices():
    module, inputs = Parts().eval(), torch.randn(2, 3, 4, 4)
    model = trace(module, inputs, name="parts").template.bind()
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("Split"), kinds.count("Slice")) == (0, 3)
    with torch.no_grad():
        assert close(run(model, inputs), module(inputs).numpy())
