import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reparam_support import difference, randomised
from torch.nn import functional

from hwsearch.errors import ConfigError
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kinds import make
from hwsearch.reparam.orepa import BRANCHES
from hwsearch.reparam.orepa_branches import cosines

BENCHMARK = Path(__file__).parents[1] / "studies" / "benchmarks" / "orepa" / "run.py"


def passed(block, squeeze, x):
    """Output and gradients, those of the input first."""
    block.squeeze = squeeze
    block.zero_grad()
    x = x.clone().requires_grad_()
    y = block(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in block.parameters())]


@pytest.mark.parametrize("prior", ["paper", "dct"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 12, 1), (8, 16, 2), (8, 8, 8), (16, 32, 8)])
def test_squeezed_and_explicit_are_the_same(shape, training, prior):
    inputs, outputs, groups = shape
    for kernel, stride in ((3, (1, 1)), (3, (2, 2)), (5, (1, 2)), (7, (2, 2))):
        geometry = Geometry(inputs=inputs, outputs=outputs, groups=groups, kernel=kernel, stride=stride)
        block = randomised(make("orepa", geometry, prior=prior)).double().train(training)
        x = torch.randn(2, inputs, 9, 14, dtype=torch.float64)
        for one, two in zip(passed(block, "always", x), passed(block, "never", x), strict=True):
            assert difference(one, two) <= 1e-8


@pytest.mark.parametrize("name", BRANCHES)
def test_each_branch_is_its_kernel(name):
    geometry = Geometry(inputs=6, outputs=9, groups=3, kernel=5, stride=(2, 1))
    names = tuple(dict.fromkeys(["origin", name]))
    generator = randomised(make("orepa", geometry, branches=names)).double().generator
    with torch.no_grad():
        if name != "origin":
            generator.scales[0] = 0
        x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
        expected = functional.conv2d(x, generator(), stride=(2, 1), padding=2, groups=3)
        assert difference(generator.explicit(x), expected) <= 1e-12
        assert expected.abs().max() > 0.01


def kept_numbers(block, x):
    """Numbers that the forward pass keeps for the backward pass, beside parameters and the input."""
    storages = {t.untyped_storage().data_ptr() for t in [*block.parameters(), *block.buffers(), x]}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    return sum(t.untyped_storage().nbytes() // 4 for key, t in kept.items() if key not in storages)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "stride", "size", "batch"),
    [
        (64, 64, 1, 1, 16, 2), (64, 64, 1, 1, 4, 1), (64, 64, 2, 1, 8, 1), (64, 64, 64, 1, 8, 1), (64, 64, 1, 1, 9, 1),
        (128, 128, 1, 2, 8, 1), (128, 128, 1, 1, 7, 1), (128, 128, 1, 1, 7, 16),
    ],
)  # fmt: skip
def test_auto_squeezes_where_that_keeps_less(inputs, outputs, groups, stride, size, batch):
    geometry = Geometry(inputs=inputs, outputs=outputs, groups=groups, stride=(stride, stride))
    x, kept = torch.randn(batch, inputs, size, size, requires_grad=True), {}
    for squeeze in ("always", "never", "auto"):
        kept[squeeze] = kept_numbers(make("orepa", geometry, squeeze=squeeze), x)
    assert kept["auto"] == min(kept["always"], kept["never"])
    assert kept["always"] != kept["never"]


def test_any_kernel_size_starts_and_stays_finite():
    x = torch.randn(8, 8, 9, 9)
    for kernel, kind in ((3, "orepa"), (5, "orepa"), (7, "orepa"), (7, "orepa_stack"), (3, "repvgg_orepa")):
        torch.manual_seed(0)
        block = make(kind, Geometry(inputs=8, outputs=8, kernel=kernel))
        assert all(torch.isfinite(tensor).all() for tensor in block.state_dict().values())
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(40):
            optimizer.zero_grad()
            (block(x) - x.flip(1)).square().mean().backward()
            optimizer.step()
        assert all(torch.isfinite(tensor).all() for tensor in block.state_dict().values())


def test_two_hundred_steps_at_a_high_rate_stay_finite_and_learn():
    torch.manual_seed(0)
    x, block = torch.randn(8, 8, 8, 8), make("orepa", Geometry(inputs=8, outputs=8))
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (block(x) - x.roll(1, 2)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.1 * losses[0]


def test_there_is_one_scale_for_each_branch_and_channel():
    block = make("repvgg_orepa", Geometry(inputs=4, outputs=6))
    assert block.main.generator.scales.shape == (5, 6)
    assert "pointwise" not in block.main.generator.branches
    starts = make("orepa", Geometry(inputs=4, outputs=6)).generator.scales[:, 0]
    assert starts.tolist() == [0.25, 0.25, 0.0, 0.5, 1.0, 0.5]


def test_paper_prior_is_the_published_formula():
    found = cosines("paper", 64, 3).double()
    expected = torch.empty(64, 3, 3, dtype=torch.float64)
    for o in range(64):
        for h in range(3):
            for w in range(3):
                angle = (h + 0.5) * (o + 1) / 3 if o < 32 else (w + 0.5) * (o + 1 - 32) / 3
                expected[o, h, w] = math.cos(math.pi * angle)
    assert torch.allclose(found, expected, atol=1e-6)
    assert len(torch.unique(found.round(decimals=4) + 0.0, dim=0)) <= 12


@pytest.mark.parametrize("size", [3, 5, 7])
def test_dct_prior_is_a_whole_basis(size):
    filters = cosines("dct", 2 * size**2, size).double()
    basis = filters[: size**2].flatten(1)
    gram = basis @ basis.T
    assert torch.allclose(gram, torch.diag(gram.diag()), atol=1e-5)
    assert gram.diag().min() > 0.1
    assert torch.equal(filters[: size**2], filters[size**2 :])


def test_a_stack_is_convolutions_in_a_row_without_padding_between():
    block = randomised(make("orepa_stack", Geometry(inputs=3, outputs=8, kernel=7, stride=(2, 2)))).double()
    x = torch.randn(2, 3, 15, 18, dtype=torch.float64)
    with torch.no_grad():
        y = functional.pad(x, [3] * 4)
        for i, part in enumerate(block.parts):
            y = functional.conv2d(y, part(), stride=2 if i == len(block.parts) - 1 else 1)
        assert difference(block(x), block.norm(y)) <= 1e-10


def test_what_an_orepa_block_refuses():
    geometry = Geometry(inputs=4, outputs=4)
    with pytest.raises(ConfigError, match="did you mean `average`"):
        make("orepa", geometry, branches=("origin", "averag"))
    with pytest.raises(ConfigError, match="needs its branch `origin`"):
        make("orepa", geometry, branches=("average",))
    stack = make("orepa_stack", Geometry(inputs=4, outputs=4, kernel=7))
    with pytest.raises(ConfigError, match="use `orepa`"):
        stack.take(geometry.conv(), stack.norm)


@pytest.mark.slow
def test_extra_memory_over_the_plain_network_is_mostly_saved_but_not_for_small_batches():
    def saved(*options):
        command = [sys.executable, str(BENCHMARK), "--device", "meta", *options]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[
            "extra_saved_of_dbb"
        ]

    assert saved() >= 0.6
    assert saved("--width", "1", "--size", "224") >= 0.65
    assert saved("--width", "1", "--size", "64", "--batch", "8") < 0
