import json

import pytest
import torch
from model_networks import Concat, randomised, traced
from torch import nn

from hwsearch.errors import ModelError
from hwsearch.model.graph import trace, weights_sha256
from hwsearch.types import ChannelAxis, SourceModel, from_json, to_json


def groups_of(source):
    return {group.name: group for group in source.groups}


def refusal(source, name):
    return next((line for line in source.refused if line.startswith(f"{name}:")), None)


def test_resnet20_layers():
    source = traced("resnet20").source
    assert source.input_shape == (3, 32, 32)
    assert source.output_shape == (10,)
    assert len(source.layers) == 22
    first = source.layers[0]
    assert (first.name, first.op, first.params, first.macs) == ("conv1", "conv", 16 * 27 + 16, 16 * 27 * 1024)
    assert source.layers[-1].name == "linear"
    assert source.layers[-1].width_group is None
    # 40.55 M in the paper's layers, and the two 1×1 shortcuts that stand for padding.
    assert sum(layer.macs for layer in source.layers) == 40_551_040 + 2 * 131_072


def test_resnet20_groups():
    source = traced("resnet20").source
    groups = groups_of(source)
    inner = {name: group.channels for name, group in groups.items() if group.kind == "inner"}
    assert inner == {f"layer{s}.{b}.conv1": 8 << s for s in (1, 2, 3) for b in range(3)}
    stages = {name: group.channels for name, group in groups.items() if group.kind == "stage"}
    assert stages == {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}
    assert set(groups["layer1.0.conv1"].axes) == {
        ChannelAxis(module="layer1.0.conv1", side="out"),
        ChannelAxis(module="layer1.0.bn1", side="out"),
        ChannelAxis(module="layer1.0.conv2", side="in"),
    }
    assert ChannelAxis(module="layer3.0.shortcut", side="out") in groups["layer3.0.conv2"].axes
    assert ChannelAxis(module="linear", side="in") in groups["layer3.0.conv2"].axes
    assert source.refused == ()


def test_resnet20_branches():
    source = traced("resnet20").source
    names = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    assert [branch.name for branch in source.branches] == names
    for branch in source.branches:
        assert branch.layers == (f"{branch.name}.conv1", f"{branch.name}.conv2")
        assert branch.groups == (f"{branch.name}.conv1",)


def test_layers_that_read_one_tensor_share_a_quantiser():
    source = traced("resnet20").source
    shared = {source.layer(name).quant_group for name in ("layer2.0.conv1", "layer2.0.shortcut")}
    assert len(shared) == 1
    assert source.layer("layer2.0.conv2").quant_group not in shared


def test_source_survives_json():
    source = traced("transformer").source
    assert from_json(SourceModel, json.loads(json.dumps(to_json(source)))) == source


def test_depthwise_and_flatten():
    source = traced("depthwise").source
    groups = groups_of(source)
    assert list(groups) == ["stem", "point", "hidden"]
    assert ChannelAxis(module="depth", side="out") in groups["stem"].axes
    assert ChannelAxis(module="hidden", side="in", repeat=4) in groups["point"].axes
    assert source.layer("depth").op == "depthwise"
    assert source.layer("depth").width_group == "stem"
    assert source.layer("depth").macs == 8 * 9 * 64


def test_concatenation_has_offsets():
    groups = groups_of(traced("concat").source)
    assert ChannelAxis(module="join", side="in", offset=0) in groups["left"].axes
    assert ChannelAxis(module="join", side="in", offset=6) in groups["right"].axes
    assert ChannelAxis(module="head", side="in", offset=6 + 6) in groups["right"].axes


def test_a_branch_with_a_second_reader_stays():
    source = traced("pre-activation").source
    assert [branch.layers for branch in source.branches] == [("one",)]
    assert ChannelAxis(module="norm", side="out") in groups_of(source)["stem"].axes


def test_a_gate_ties_channels_without_making_a_stage():
    source = traced("gated").source
    kinds = {group.name: group.kind for group in source.groups}
    assert kinds == {"stem": "stage", "expand": "inner", "squeeze": "inner"}
    outputs = {axis.module for axis in groups_of(source)["expand"].axes if axis.side == "out"}
    assert outputs == {"expand", "excite"}
    (branch,) = source.branches
    assert branch.groups == ("expand", "squeeze")


def test_transformer():
    source = traced("transformer").source
    assert [(group.name, group.channels) for group in source.groups] == [("fc1", 24)]
    assert [branch.layers for branch in source.branches] == [("attention.out_proj",), ("qkv", "proj"), ("fc1", "fc2")]
    assert "position" in refusal(source, "patch")
    assert refusal(source, "attention.in_proj_weight")
    assert source.layer("fc1").in_shape == (17, 16)
    assert source.layer("fc1").macs == 17 * 16 * 24
    # Attention flattens batch and tokens into one axis; the work is still that of all tokens.
    assert source.layer("attention.out_proj").macs == 17 * 16 * 16


def test_what_is_not_safe_is_refused_with_a_reason():
    source = traced("awkward").source
    assert list(groups_of(source)) == ["plain", "after"]
    assert "grouped" in refusal(source, "before_grouped")
    assert "scale" in refusal(source, "scaled")
    for name in ("split", "side", "grouped", "shuffled", "fixed"):
        assert refusal(source, name), name
    assert "twice" not in [layer.name for layer in source.layers]
    assert "more than once" in refusal(source, "twice.weight")
    assert all("\n" not in line for line in source.refused)


def test_trace_leaves_the_module_alone():
    module = randomised(Concat())
    before = weights_sha256(module)
    flags = [p.requires_grad for p in module.parameters()]
    trace(module, torch.zeros(1, 3, 8, 8), name="x")
    assert weights_sha256(module) == before
    assert [p.requires_grad for p in module.parameters()] == flags


def test_trace_is_silent(capfd):
    trace(Concat(), torch.zeros(1, 3, 8, 8), name="x")
    assert capfd.readouterr() == ("", "")


def test_sha_depends_on_values_and_names():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert weights_sha256(one) == weights_sha256(other)
    other.weight.data[0, 0] += 1
    assert weights_sha256(one) != weights_sha256(other)
    assert weights_sha256(nn.Sequential(one)) != weights_sha256(one)


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class OneBatchSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x + torch.arange(len(x)).float()[: x.shape[0], None] if len(x) == 2 else x)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x), x


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (DataDependent(), torch.ones(1, 4), "cannot be traced"),
        (OneBatchSize(), torch.ones(1, 4), "one batch size only"),
        (TwoOutputs(), torch.ones(1, 4), "must return one tensor"),
        (nn.Conv2d(3, 4, 1), torch.ones(1, 1, 8, 8), r"does not run on an input of shape \(1, 8, 8\)"),
        (nn.Sequential(nn.ReLU()), torch.ones(1, 4), "no convolution or linear layer"),
    ],
)
def test_a_network_that_cannot_be_traced(module, example, message, capfd):
    with pytest.raises(ModelError, match=message) as caught:
        trace(module, example, name="x")
    assert "\n" not in caught.value.message
    assert "\n" not in (caught.value.where or "")
    assert capfd.readouterr() == ("", "")
