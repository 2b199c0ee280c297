import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import stripes, tiny

from hwsearch.config import DataConfig
from hwsearch.errors import ModelError
from hwsearch.model.data import load_splits
from hwsearch.model.load import load_model
from hwsearch.model.metric import TOP1
from hwsearch.model.train import _Step, one_cycle, random_shift, train


def test_training_learns_is_repeatable_and_leaves_eval_mode():
    images, targets = stripes()
    one, again, other = tiny(), tiny(), tiny()
    seen = []
    history = train(one, images, targets, epochs=6, batch=16, on_epoch=lambda epoch, loss: seen.append(epoch))
    train(again, images, targets, epochs=6, batch=16)
    train(other, images, targets, epochs=6, batch=16, seed=1)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert history.losses[-1] < history.losses[0]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)
    assert not one.training
    assert one[0].weight.dtype == torch.float32
    with torch.no_grad():
        assert TOP1(one(torch.from_numpy(images)).numpy(), targets) > 0.9


def test_training_leaves_the_global_random_state_alone():
    module, before = tiny(), torch.random.get_rng_state()
    train(module, *stripes(), epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fixed_weights_stay():
    module = tiny()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    train(module, *stripes(), epochs=1)
    assert torch.equal(module[0].weight, before)


def test_minutes():
    started = time.perf_counter()
    history = train(tiny(), *stripes(), minutes=0.01)
    assert len(history.losses) >= 1
    assert time.perf_counter() - started >= 0.6


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_learns_in_every_precision(precision):
    images, targets = map(torch.from_numpy, stripes())
    module = tiny().train()
    descent = torch.optim.SGD(module.parameters(), lr=0.05)
    step = _Step(module, descent, torch.nn.functional.cross_entropy, torch.device("cpu"), precision)
    losses = [step(images, targets) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert module[0].weight.dtype == torch.float32


@pytest.mark.parametrize("duration", [{}, {"epochs": 1, "minutes": 1.0}])
def test_exactly_one_duration(duration):
    with pytest.raises(ValueError, match="either epochs or minutes"):
        train(tiny(), *stripes(), **duration)


def test_divergence_is_an_error():
    with pytest.raises(ModelError, match="diverged in epoch"):
        train(tiny(), *stripes(), epochs=20, lr=1e30, weight_decay=1.0)


def test_one_cycle():
    values = [one_cycle(i / 1000) for i in range(1001)]
    assert values[0] == 0
    assert max(values) == values[250] == 1
    assert values[-1] == pytest.approx(0)
    assert np.abs(np.diff(values)).max() < 0.005


def test_random_shift_moves_images_and_pads_with_zeros():
    images = torch.arange(1.0, 33).reshape(2, 1, 4, 4)
    shifted = random_shift(1, flip=True)(images, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    for before, after in zip(images, shifted, strict=True):
        moved = set(after.flatten().tolist()) - {0.0}
        assert moved <= set(before.flatten().tolist())
        assert len(moved) >= 9
    assert torch.equal(random_shift(0)(images, torch.Generator()), images)


@pytest.mark.slow
def test_digits_demo_reaches_97_percent(tmp_path):
    start = resources.files("hwsearch.cli.start") / "model.py"
    (tmp_path / "model.py").write_text(start.read_text())
    splits = load_splits(DataConfig(source="digits"), base_dir=Path())
    module = load_model("model.py:build", base_dir=tmp_path)
    with torch.no_grad():
        accuracy = TOP1(module(torch.from_numpy(splits.report.inputs)).numpy(), splits.report.targets)
    assert accuracy > 0.97
