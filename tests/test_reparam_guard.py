import numpy as np
import pytest
import torch
from reparam_support import Small, randomised
from torch import nn

from hwsearch.model.graph import trace
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.guard import bounded, health, inspect, rounded
from hwsearch.reparam.kinds import make
from hwsearch.types import SearchSpace

LADDER = ("int2", "int4", "int8", "bf16", "fp32")


def merged_with_a_steep_identity(kind):
    """The block on a map whose variance is small, so that a batch norm of the identity has a large scale."""
    torch.manual_seed(0)
    block = make(kind, Geometry(inputs=64, outputs=64))
    x = 0.1 * torch.randn(32, 64, 8, 8)
    block.train()
    for _ in range(60):
        block(x)
    return block.merged().weight.detach().numpy()


def test_repvgg_is_fragile_where_qarepvgg_is_not():
    steep, flat = (health(kind, merged_with_a_steep_identity(kind)) for kind in ("repvgg", "qarepvgg"))
    plain = health("plain", merged_with_a_steep_identity("plain"))
    assert steep.fragile
    assert not plain.fragile
    assert flat.kurtosis < steep.kurtosis
    assert steep.per_tensor_db[6] < plain.per_tensor_db[6] - 10


def test_numbers_of_known_weights():
    rng = np.random.default_rng(0)
    normal = health("normal", rng.standard_normal((64, 64, 3, 3)))
    assert normal.kurtosis == pytest.approx(3, abs=0.1)
    assert normal.channel_ratio == pytest.approx(1.3, abs=0.3)
    assert not normal.fragile
    assert normal.least_bits == 0
    # A uniform distribution up to the peak: n bits give 20 log10(2 (2^(n-1) - 1)) decibels.
    uniform = health("uniform", rng.uniform(-1, 1, (64, 4096)))
    for bits in (8, 6, 4):
        expected = 20 * np.log10(2 * (2 ** (bits - 1) - 1))
        assert uniform.per_tensor_db[bits] == pytest.approx(expected, abs=0.1)
    assert uniform.peak == pytest.approx(3**0.5, abs=0.01)


def test_scales_per_channel_help_where_channels_differ():
    rows = np.random.default_rng(0).standard_normal((8, 100)) * 4.0 ** np.arange(8)[:, None]
    found = health("uneven", rows)
    small = rows[:4]
    assert found.channel_ratio > 20
    assert found.per_channel_db[4] > found.per_tensor_db[4]
    assert np.abs(rounded(rows, 4, per_channel=False)[:4]).max() == 0
    assert np.abs(rounded(rows, 4, per_channel=True)[:4] - small).max() < np.abs(small).max() / 10


def test_weights_that_rounding_leaves_alone_are_not_fragile():
    kernel = np.zeros((64, 64, 3, 3))
    kernel[range(64), range(64), 1, 1] = 1
    found = health("identity", kernel)
    assert found.kurtosis > 100
    assert found.per_tensor_db[4] == np.inf
    assert not found.fragile
    assert not health("zeros", np.zeros((4, 4))).fragile


def space(*names):
    return SearchSpace(
        target="t", widths={}, droppable=(), precisions=dict.fromkeys(names, LADDER), float_precisions=("bf16", "fp32")
    )


def test_narrow_precisions_are_kept_from_fragile_layers():
    rng = np.random.default_rng(0)
    peaked, hopeless = rng.standard_normal((16, 64, 3, 3)), rng.standard_normal((16, 256, 3, 3))
    peaked[:, 0, 1, 1] = 40
    hopeless[:, 0, 1, 1] = 200  # in every channel, so that scales per channel do not help
    layers = [health("good", rng.standard_normal((16, 64, 3, 3))), health("peaked", peaked), health("bad", hopeless)]
    found = bounded(space("good", "peaked", "bad", "other"), layers)
    assert found.precisions == {
        "good": LADDER,
        "peaked": LADDER[2:],
        "bad": LADDER[3:],
        "other": LADDER,
    }
    assert len(found.refused) == 1
    assert "2 layers" in found.refused[0]
    assert "peaked, bad" in found.refused[0]
    assert "qarepvgg" in found.refused[0]


def test_a_layer_keeps_something_to_choose():
    only = SearchSpace(target="t", widths={}, droppable=(), precisions={"a": ("int4",)}, float_precisions=("fp32",))
    weights = np.zeros((4, 64))
    weights[:] = np.random.default_rng(0).standard_normal(64) * 0.01
    weights[:, 0] = 1
    assert bounded(only, [health("a", weights)]).precisions == {"a": ("int4",)}


def test_a_healthy_space_is_left_alone():
    healthy = space("a")
    assert bounded(healthy, [health("a", np.random.default_rng(0).standard_normal((16, 64)))]) == healthy


def test_a_network_is_judged_with_its_batch_norms_folded():
    small = randomised(Small())
    with torch.no_grad():
        small.bn2.weight[0] = 200
    found = {layer.name: layer for layer in inspect(trace(small, torch.zeros(2, 3, 32, 32), name="small"))}
    assert list(found) == ["stem.0", "conv1", "conv2", "depthwise", "pointwise", "last", "linear"]
    assert found["conv2"].channel_ratio > 50
    assert found["conv1"].channel_ratio < 10
    assert isinstance(small.bn2, nn.BatchNorm2d)
