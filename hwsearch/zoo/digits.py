"""The embedded example: ResNet-20 on handwritten digits, trained in well under a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hwsearch.errors import DataError
from hwsearch.model.data import Splits
from hwsearch.model.train import History, random_shift, train
from hwsearch.store import atomic_write
from hwsearch.zoo.resnet import resnet20

EPOCHS = 10


def train_digits_resnet20(
    splits: Splits, weights: Path, *, seed: int = 0, on_epoch: Callable[[int, float], None] | None = None
) -> History:
    """Train a ResNet-20 on the training examples of the data source ``digits`` and save its state dict.

    Ten epochs on 748 images: 98 to 99 % of the search and report splits.

    Args:
        splits: From `load_splits` with the source ``digits``.
        weights: File for the state dict; appears whole or not at all.
        seed: Of the initial weights and of the training.
        on_epoch: Called with the epoch's number, from 1 to `EPOCHS`, and its mean loss.

    Raises:
        DataError: the splits hold no training examples.
    """
    data = splits.train
    if data is None:
        raise DataError("the data hold no training examples")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = resnet20()
    history = train(
        module,
        data.inputs,
        data.targets,
        epochs=EPOCHS,
        batch=32,
        seed=seed,
        augment=random_shift(2),
        on_epoch=on_epoch,
    )
    with atomic_write(weights) as stream:
        torch.save(module.state_dict(), stream)
    return history
