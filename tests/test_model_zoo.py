import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwsearch.config import DataConfig
from hwsearch.model.data import load_splits
from hwsearch.model.load import load_model
from hwsearch.model.metric import TOP1
from hwsearch.zoo.resnet import PaddingShortcut, resnet20, resnet32, resnet44, resnet56

DATA = os.environ.get("HWSEARCH_DATA")


def test_padding_shortcut_is_slicing_and_padding():
    x = torch.randn(2, 16, 9, 8)
    expected = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(PaddingShortcut(16, 32)(x), expected)


def test_checkpoints_without_the_shortcut_load():
    module = resnet20()
    state = {name: tensor for name, tensor in module.state_dict().items() if "shortcut" not in name}
    assert len(state) == len(module.state_dict()) - 2
    other = resnet20()
    other.load_state_dict(state)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), module.eval()(x))


def test_shortcut_is_not_trained():
    module = resnet20()
    assert not module.layer2[0].shortcut.weight.requires_grad
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 269_722


@pytest.mark.parametrize(("build", "layers"), [(resnet20, 20), (resnet32, 32), (resnet44, 44), (resnet56, 56)])
def test_depth_counts_weighted_layers(build, layers):
    module = build()
    weighted = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([m for m in weighted if not isinstance(m, PaddingShortcut)]) == layers


def test_width_and_shortcut_b():
    module = resnet20(3, shortcut="B", width=0.5).eval()
    assert module.layer3[0].shortcut[0].weight.shape == (32, 16, 1, 1)
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="HWSEARCH_DATA is not set")
@pytest.mark.parametrize(
    ("name", "file", "correct"),
    [
        ("resnet20", "resnet20-12fca82f.th", 9173),
        pytest.param("resnet56", "resnet56-4bfd9763.th", 9339, marks=pytest.mark.slow),
    ],
)
def test_pretrained_networks_reproduce_their_accuracy(name, file, correct):
    folder = Path(DATA) / "cifar10"
    module = load_model(f"hwsearch.zoo.resnet:{name}", weights=folder / file)
    splits = load_splits(DataConfig(source="cifar10", path=str(folder), search=2000, report=8000), base_dir=Path())
    right = 0
    with torch.no_grad():
        for split in (splits.search, splits.report):
            for start in range(0, len(split), 500):
                outputs = module(torch.from_numpy(split.inputs[start : start + 500])).numpy()
                right += int(np.sum(TOP1.per_example(outputs, split.targets[start : start + 500])))
    assert right == correct
