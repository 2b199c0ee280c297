"""The network of this study. Put your own in its place: any function that returns a trained torch module."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from hwsearch.config import DataConfig
from hwsearch.model.data import load_splits
from hwsearch.model.train import random_shift, train
from hwsearch.store import atomic_write
from hwsearch.zoo.resnet import resnet20

WEIGHTS = Path(__file__).with_name("weights.pt")


def build() -> nn.Module:
    """ResNet-20, trained on handwritten digits when it is built for the first time."""
    network = resnet20()
    if not WEIGHTS.exists():
        fit(network)
        with atomic_write(WEIGHTS) as stream:
            torch.save(network.state_dict(), stream)
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return network


def fit(network: nn.Module) -> None:
    """Train on the digits that no split of the study holds."""
    print("training ResNet-20 on the digits, once", file=sys.stderr)
    examples = load_splits(DataConfig(source="digits"), base_dir=Path()).train
    assert examples is not None
    train(network, examples.inputs, examples.targets, epochs=12, augment=random_shift(2))
