import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reparam_support import difference, randomised
from torch import nn
from torch.nn import functional

from hwsearch.errors import ConfigError
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kernels import compose
from hwsearch.reparam.kinds import KINDS, make

SHAPES = [(8, 8, 1), (6, 10, 1), (8, 16, 2), (8, 8, 8), (4, 8, 4)]
STRIDES = [(1, 1), (2, 2), (2, 1)]


def cases():
    for kind, kernel, stride, (inputs, outputs, groups) in itertools.product(KINDS, (1, 3, 5, 7), STRIDES, SHAPES):
        geometry = Geometry(inputs=inputs, outputs=outputs, kernel=kernel, stride=stride, groups=groups)
        limits = {"orepa_pointwise": (1, 1), "orepa_stack": (5, 7)}.get(kind, (1, 7))
        if limits[0] <= kernel <= limits[1]:
            yield kind, geometry


@pytest.mark.parametrize("kind", KINDS)
def test_merging_changes_nothing(kind):
    tested = 0
    for name, geometry in cases():
        if name != kind:
            continue
        block = randomised(make(kind, geometry))
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-6)):
            block.to(dtype)
            x = torch.randn(2, geometry.inputs, 9, 14, dtype=dtype)
            with torch.no_grad():
                expected, found = block(x), block.merged()(x)
            assert difference(found, expected) <= tolerance, geometry
            assert expected.abs().max() > 0.1
            tested += 1
    assert tested >= 30


@settings(max_examples=25)
@given(
    kind=st.sampled_from([kind for kind in KINDS if kind not in ("orepa_pointwise", "orepa_stack")]),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 5),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_merging_changes_nothing_whatever_the_shape(kind, kernel, stride, groups, widths, size):
    geometry = Geometry(
        inputs=groups * widths[0], outputs=groups * widths[1], kernel=kernel, stride=stride, groups=groups
    )
    block = randomised(make(kind, geometry)).double()
    x = torch.randn(1, geometry.inputs, *size, dtype=torch.float64)
    with torch.no_grad():
        assert difference(block.merged()(x), block(x)) <= 1e-10


def padded_as_published(norm, y, padding):
    """The map padded with what the batch norm makes of a zero pixel (Ding et al. 2021, "BN-and-pad")."""
    zero = norm(torch.zeros(1, norm.num_features, 1, 1, dtype=y.dtype))
    inside = functional.pad(torch.ones_like(y[:, :1]), [padding] * 4)
    return functional.pad(y, [padding] * 4) * inside + zero * (1 - inside)


@pytest.mark.parametrize("groups", [1, 2])
def test_dbb_computes_its_published_definition(groups):
    geometry = Geometry(inputs=8, outputs=12, kernel=5, stride=(2, 1), groups=groups)
    block = randomised(make("dbb", geometry)).double()
    x = torch.randn(2, 8, 9, 14, dtype=torch.float64)
    with torch.no_grad():
        two, pool, one = (block.others[name] for name in ("pointwise_conv", "pool", "pointwise"))
        y = padded_as_published(two.inner, two.inner(two.pointwise(x)), 2)
        expected = two.norm(functional.conv2d(y, two.conv.weight, stride=(2, 1), groups=groups))
        y = padded_as_published(pool.inner, pool.inner(pool.conv(x)), 2)
        expected += pool.norm(functional.avg_pool2d(y, 5, (2, 1)))
        expected += one.norm(one.conv(x)) + block.main.norm(block.main.conv(x))
        assert difference(block(x), expected) <= 1e-10


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"orepa_stack", "orepa_pointwise"}))
def test_a_block_takes_over_a_trained_convolution(kind):
    for geometry in (Geometry(inputs=8, outputs=8), Geometry(inputs=8, outputs=12, stride=(2, 2), groups=4)):
        conv, norm = (
            randomised(geometry.conv(bias=True)).double(),
            randomised(nn.BatchNorm2d(geometry.outputs)).double(),
        )
        norm.eps, norm.momentum = 1e-3, 0.3
        block = make(kind, geometry).double().eval()
        block.take(conv, norm)
        x = torch.randn(4, 8, 9, 14, dtype=torch.float64)
        with torch.no_grad():
            assert difference(block(x), norm(conv(x))) <= 1e-10
            assert difference(block.merged()(x), norm(conv(x))) <= 1e-10
            block.train()
            norm.train()
            assert difference(block(x), norm(conv(x))) <= 1e-2  # two batch norms in a row add their eps twice


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"orepa_stack", "orepa_pointwise", "plain"}))
def test_every_branch_learns_from_the_first_step_after_taking_over(kind):
    geometry = Geometry(inputs=8, outputs=8)
    conv, norm = randomised(geometry.conv()), randomised(nn.BatchNorm2d(8))
    block = make(kind, geometry)
    block.take(conv, norm)
    block.train()
    x = torch.randn(4, 8, 9, 9)
    before = {name: parameter.clone() for name, parameter in block.named_parameters()}
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):  # a branch of scale zero first learns its scale, then its weights
        optimizer.zero_grad()
        (block(x) * torch.linspace(-1, 1, 8)[:, None, None]).sin().sum().backward()
        optimizer.step()
    stuck = [name for name, parameter in block.named_parameters() if torch.equal(parameter, before[name])]
    assert not stuck


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind):
    geometry = Geometry(inputs=8, outputs=8, kernel=1 if kind == "orepa_pointwise" else 5)
    block, other = randomised(make(kind, geometry)), make(kind, geometry).eval()
    other.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 7, 7)
    with torch.no_grad():
        assert torch.equal(other(x), block(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_equivalent_kernel_is_differentiable(kind):
    geometry = Geometry(inputs=8, outputs=8, kernel=1 if kind == "orepa_pointwise" else 5)
    block = randomised(make(kind, geometry))
    weight, bias = block.equivalent()
    assert weight.shape == (8, 8, geometry.kernel, geometry.kernel)
    (weight.square().sum() + bias.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_merged_keeps_geometry_type_and_mode():
    geometry = Geometry(inputs=4, outputs=8, kernel=5, stride=(2, 1), groups=4)
    block = make("dbb", geometry).double()
    conv = block.train().merged()
    assert Geometry.of(conv) == geometry
    assert conv.weight.dtype == torch.float64
    assert conv.training
    assert not block.eval().merged().training
    assert all(parameter.dtype == torch.float64 for parameter in block.parameters())


def test_geometry_of_convolutions_that_blocks_cannot_stand_for():
    assert Geometry.of(nn.Conv2d(3, 4, 3, padding=1)) == Geometry(inputs=3, outputs=4)
    assert Geometry.of(nn.Conv2d(3, 4, 5, padding="same")) == Geometry(inputs=3, outputs=4, kernel=5)
    refused = [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, 2, padding=1),
        nn.Conv2d(3, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    ]
    assert [Geometry.of(conv) for conv in refused] == [None] * 5


@pytest.mark.parametrize("groups", [1, 2])
def test_composed_kernels_are_convolutions_in_a_row(groups):
    first, second = torch.randn(6, 4 // groups, 3, 5).double(), torch.randn(8, 6 // groups, 5, 3).double()
    x = torch.randn(2, 4, 11, 12, dtype=torch.float64)
    expected = functional.conv2d(functional.conv2d(x, first, groups=groups), second, groups=groups)
    assert difference(functional.conv2d(x, compose(first, second, groups), groups=groups), expected) < 1e-12


def test_unknown_kinds_and_options_are_named():
    geometry = Geometry(inputs=4, outputs=4)
    with pytest.raises(ConfigError, match="did you mean `repvgg`"):
        make("repvg", geometry)
    with pytest.raises(ConfigError, match="`dbb` does not take"):
        make("dbb", geometry, squeeze="auto")
