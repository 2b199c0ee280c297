"""Adapters: what they merge into, what they cost, and that taking them out leaves no trace."""

import importlib.util
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.adapt import AdapterSpec, base_weights, insert, load_adapter, merge, remove, save_adapter, size, unmerge
from hwsearch.adapt.adapter import AdaptedConv2d, AdaptedLinear, ChannelScale, RepAdapter
from hwsearch.adapt.insert import adapted_layers
from hwsearch.errors import ConfigError
from hwsearch.zoo.mobilenet_v2 import mobilenet_v2
from hwsearch.zoo.resnet import ResNet
from hwsearch.zoo.vit import ViT

SCALES, GROUPS = (0.1, 1.0, 10.0), (1, 2, 4)


def trained(module, seed=0):
    """Adapters as they are after training: no weight is zero. Norms have statistics of their own, too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if ".adapter." in name or "lora_" in name or name.startswith("adapter."):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module.eval()


def gap(found, expected):
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def small_vit():
    torch.manual_seed(0)
    return ViT(10, heads=2, head_size=8, depth=2, image=16, patch=4).eval()


def small_resnet():
    torch.manual_seed(0)
    return trained(ResNet(1, 10, width=0.5))


def small_mobilenet():
    torch.manual_seed(0)
    return trained(mobilenet_v2(10, width=0.25))


NETWORKS = {"vit": (small_vit, 16), "resnet": (small_resnet, 16), "mobilenet": (small_mobilenet, 32)}


# --------------------------------------------------------------------------- one layer


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_merges_into_the_linear_layer_behind_it(scale, groups, bias):
    torch.manual_seed(0)
    adapter = RepAdapter(24, rank=8, groups=groups, scale=scale)
    adapted = trained(AdaptedLinear(nn.Linear(24, 40, bias=bias), adapter)).double()
    x = torch.randn(3, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        expected, found = adapted(x), adapted.merged()(x)
        assert gap(found, expected) <= 1e-10
        assert gap(expected, adapted.base_layer(x)) > 0.01
        assert gap(adapted.float().merged()(x.float()), adapted(x.float())) <= 1e-5


CONVOLUTIONS = list(itertools.product((1, 3, 5), (1, 2, (2, 1)), (0, 1, 2, "same"), ("zeros", "reflect"), (1, 2)))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("groups", GROUPS)
def test_an_adapter_merges_into_the_convolution_before_it(scale, groups):
    tested = 0
    for kernel, stride, padding, mode, dilation in CONVOLUTIONS:
        if padding == "same" and stride != 1:
            continue
        torch.manual_seed(0)
        conv = nn.Conv2d(
            4, 8, kernel, stride, padding, dilation, bias=bool(tested % 2), padding_mode=mode, dtype=torch.float64
        )
        adapter = RepAdapter(8, rank=4, groups=groups, scale=scale).double()
        adapted = trained(AdaptedConv2d(conv, adapter))
        x = torch.randn(2, 4, 13, 11, dtype=torch.float64)
        with torch.no_grad():
            assert gap(adapted.merged()(x), adapted(x)) <= 1e-10, (kernel, stride, padding, mode, dilation)
        tested += 1
    assert tested >= 100


@settings(max_examples=20)
@given(
    groups=st.sampled_from([2, 3, 6]),
    multiplier=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    scale=st.sampled_from(SCALES),
)
def test_grouped_convolutions_are_scaled_and_shifted_per_channel(groups, multiplier, kernel, stride, scale):
    torch.manual_seed(0)
    outputs = 6 * multiplier
    conv = nn.Conv2d(6, outputs, kernel, stride, kernel // 2, groups=groups, bias=False, dtype=torch.float64)
    adapted = trained(AdaptedConv2d(conv, ChannelScale(outputs, scale=scale).double()))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        assert gap(adapted.merged()(x), adapted(x)) <= 1e-10


def test_groups_that_divide_nothing_are_refused():
    with pytest.raises(ConfigError, match="cannot have 3 groups"):
        RepAdapter(8, rank=6, groups=3)


# --------------------------------------------------------------------------- a network


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["repadapter", "lora"])
def test_a_network_with_new_adapters_computes_the_same_and_merges_when_they_have_learnt(name, kind):
    if kind == "lora":
        pytest.importorskip("peft")
    build, pixels = NETWORKS[name]
    base = build().double()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    layers = ("*conv2", "layer*conv1") if name == "resnet" else ()
    adapted = insert(base, AdapterSpec(kind=kind, rank=4, scale=0.5, layers=layers)).eval()
    x = torch.randn(2, 3, pixels, pixels, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(adapted(x), base(x))
        learnt = trained(adapted)
        merged = merge(learnt)
        assert gap(learnt(x), base(x)) > 1e-3
        assert gap(merged(x), learnt(x)) <= 1e-10
    assert {n for n, _ in merged.named_modules()} == {n for n, _ in base.named_modules()}
    assert all(torch.equal(base.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_taking_adapters_out_gives_the_base_back_bit_for_bit(name):
    base = NETWORKS[name][0]()
    learnt = trained(insert(base, AdapterSpec(rank=4)))
    kept = base_weights(learnt)
    for restored in (remove(learnt), unmerge(merge(learnt), kept)):
        state = restored.state_dict()
        assert state.keys() == base.state_dict().keys()
        changed = [k for k, v in base.state_dict().items() if not torch.equal(state[k], v) and "running" not in k]
        assert changed == []


def test_only_adapters_and_the_head_are_trained():
    adapted = insert(small_vit(), AdapterSpec(rank=4))
    names = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in names if ".adapter." not in name} == {"head"}
    assert len([name for name in names if name.endswith("adapter.up")]) == 4
    without = insert(small_vit(), AdapterSpec(rank=4, head=False))
    assert all(".adapter." in name for name, value in without.named_parameters() if value.requires_grad)


def test_adapters_stand_where_they_belong():
    assert adapted_layers(small_vit()) == tuple(f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.fc1"))
    assert "linear" not in adapted_layers(small_resnet())
    assert not any("shortcut" in name for name in adapted_layers(small_resnet()))  # of fixed weights
    depthwise = insert(small_mobilenet()).features[1].conv[0][0]
    assert isinstance(depthwise.adapter, ChannelScale)


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("kind", ["repadapter", "lora"])
def test_weights_that_are_zero_in_a_pattern_stay_zero(name, kind):
    if kind == "lora":
        pytest.importorskip("peft")
    build, pixels = NETWORKS[name]
    base = build().double()
    layers = [layer for layer in base.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    dense = layers[1]  # the pattern leaves it out
    for layer in layers:
        if layer is not dense:
            layer.weight.data[:, ::2] = 0
    adapted = insert(base, AdapterSpec(kind=kind, rank=4, layers=("*conv*", "*qkv", "*fc1")))
    generator = torch.Generator().manual_seed(0)
    for value in adapted.parameters():
        if value.requires_grad:
            value.data += torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.3
    x, merged = torch.randn(2, 3, pixels, pixels, dtype=torch.float64), merge(adapted)
    with torch.no_grad():
        assert gap(merged(x), adapted.eval()(x)) <= 1e-10
        assert gap(merged(x), base(x)) > 1e-3
    for layer, after in zip(base.modules(), merged.modules(), strict=True):
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer is not dense:
            assert (after.weight[layer.weight == 0] == 0).all()


def test_lora_without_a_dense_layer_is_refused():
    base = small_vit()
    for layer in base.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data[:, ::2] = 0
    with pytest.raises(ConfigError, match="fill the zeros"):
        insert(base, AdapterSpec(kind="lora"))


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="no layer to adapt"):
        insert(small_vit(), AdapterSpec(layers=("blocks.*.attn.qvk",)))


def test_without_peft_lora_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "peft" else real(name))
    with pytest.raises(ConfigError, match=r"hwsearch\[adapt\]"):
        insert(small_vit(), AdapterSpec(kind="lora"))


# --------------------------------------------------------------------------- size and storage


def test_adapters_of_a_vit_base_have_as_many_weights_as_published():
    with torch.device("meta"):
        base = ViT(100, heads=12, head_size=64, depth=12, image=224, patch=16)
    found = size(insert(base, AdapterSpec(head=False)))
    assert (found.adapters, found.weights, found.parameters) == (24, 221_184, 24 * 9_992)
    assert found.base == sum(value.numel() for value in base.parameters())
    assert found.trained == found.parameters
    assert found.trained_bytes == 4 * found.trained


def test_low_rank_maps_go_to_the_layers_named_and_no_others(tmp_path):
    pytest.importorskip("peft")
    base, spec = small_resnet(), AdapterSpec(kind="lora", rank=2, layers=("conv1",))
    learnt = trained(insert(base, spec))
    assert size(learnt).adapters == 1  # not layer1.0.conv1, which ends alike
    save_adapter(tmp_path, learnt, base, spec)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_adapter(tmp_path, base)(x), learnt(x))


def test_a_file_holds_what_a_scene_adds_and_nothing_of_the_base(tmp_path):
    base = small_resnet()
    spec = AdapterSpec(rank=4, layers=("layer3*",))
    learnt = trained(insert(base, spec), seed=1)
    learnt.linear.bias.data += 1
    written = save_adapter(tmp_path, learnt, base, spec, {"scene": "night"})
    found = load_adapter(tmp_path, base)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(found(x), learnt(x))
    from safetensors.torch import load_file

    names = set(load_file(tmp_path / "adapter.safetensors"))
    assert not any("base_layer" in name or name == "conv1.weight" for name in names)
    assert {"linear.bias", "bn1.running_mean", "layer3.0.conv1.adapter.up"} <= names
    assert "linear.weight" not in names
    assert written.bytes == (tmp_path / "adapter.safetensors").stat().st_size
    assert json.loads((tmp_path / "adapter.json").read_text())["facts"] == {"scene": "night"}


def test_an_adapter_of_another_network_is_refused(tmp_path):
    base, other = small_resnet(), small_resnet()
    other.conv1.weight.data += 1e-3
    save_adapter(tmp_path, insert(base), base, AdapterSpec())
    with pytest.raises(ConfigError, match="belongs to another network"):
        load_adapter(tmp_path, other)


def test_a_damaged_adapter_is_refused(tmp_path):
    base = small_resnet()
    save_adapter(tmp_path, insert(base), base, AdapterSpec())
    tensors = tmp_path / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigError, match="not the file"):
        load_adapter(tmp_path, base)
    (tmp_path / "adapter.json").write_text('{"schema_version": 2}')
    with pytest.raises(ConfigError, match="another version"):
        load_adapter(tmp_path, base)


# --------------------------------------------------------------------------- learning


def test_adapters_learn():
    from hwsearch.model.train import train

    torch.manual_seed(0)
    base = small_vit()
    images = torch.randn(64, 3, 16, 16)
    labels = torch.arange(64) % 2
    images += labels[:, None, None, None]
    adapted = insert(base, AdapterSpec(rank=4, head=False, dropout=0.0))
    history = train(adapted, images, labels, epochs=16, lr=0.05, batch=16, optimizer="adamw")
    assert history.losses[-1] < 0.9 * history.losses[0]
    with torch.no_grad():
        assert gap(remove(adapted)(images[:2]), base(images[:2])) == 0
