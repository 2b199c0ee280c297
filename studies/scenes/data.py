"""Source networks and the scenes they are sent to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hwsearch.adapt.corruptions import CORRUPTIONS, corrupt
from hwsearch.adapt.ladder import Source
from hwsearch.adapt.scenes import SceneData, divide
from hwsearch.adapt.statistics import stored
from hwsearch.config import DataConfig
from hwsearch.model.load import load_model
from hwsearch.model.pools import Normalize
from hwsearch.model.sources import DIGITS, IMAGENET, load_pools
from hwsearch.model.train import random_shift, train
from hwsearch.zoo.resnet import ResNet

DATA = Path(os.environ.get("HWSEARCH_DATA", "/nowhere"))
REAL_LIFE = tuple(kind for kind in CORRUPTIONS if kind != "invert")
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


def normalised(images, normalize):
    return normalize(images.astype(np.float32) / 255)


def source_of(network, images):
    return Source(statistics=stored(network), replay=images[:256])


def digits():
    """A ResNet of half width trained on scikit-learn's digits; corruptions, inversion, and MNIST as another hand."""
    pools = load_pools(DataConfig(source="digits"), base_dir=Path())
    learn, other = pools["train"], pools["test"]
    images = normalised(learn.inputs, DIGITS)
    torch.manual_seed(0)
    network = ResNet(1, 10, width=0.5)
    train(network, images, learn.targets, epochs=12, lr=0.1, augment=random_shift(2))
    scenes = {kind: (corrupt(other.inputs, kind, 5), other.targets) for kind in CORRUPTIONS}
    if DATA.is_dir():
        scenes["mnist"] = mnist()
    clean = normalised(other.inputs, DIGITS), other.targets
    return network, source_of(network, images), named("digits", scenes, DIGITS), clean


def mnist(count=2000):
    """MNIST padded to 32×32, three equal channels, uint8."""
    with np.load(DATA / "mnist" / "t10k.npz") as archive:
        images, labels = archive["images"][:count], archive["labels"][:count]
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(images[:, None], 3, axis=1), labels.astype(np.int64)


def cifar10(count=2000):
    """The pretrained ResNet-20 and corrupted test images."""
    weights = DATA / "cifar10" / "resnet20-12fca82f.th"
    network = load_model("hwsearch.zoo.resnet:resnet20", weights=weights)
    pools = load_pools(DataConfig(source="cifar10", path=str(DATA / "cifar10")), base_dir=Path())
    other = pools["test"]
    replay = normalised(pools["train"].inputs[:256], IMAGENET)
    scenes = {kind: (corrupt(other.inputs[:count], kind, 5), other.targets[:count]) for kind in REAL_LIFE}
    clean = normalised(other.inputs[:count], IMAGENET), other.targets[:count]
    return network, source_of(network, replay), named("cifar10", scenes, IMAGENET), clean


def pacs(domain):
    """ResNet-20 of CIFAR-10, its head replaced and all of it trained on three domains; the fourth is the scene."""
    network = load_model("hwsearch.zoo.resnet:resnet20", weights=DATA / "cifar10" / "resnet20-12fca82f.th")
    torch.manual_seed(0)
    network.linear = nn.Linear(64, 7)
    parts = {name: images_of(name) for name in DOMAINS}
    images, labels = (np.concatenate([parts[name][i] for name in DOMAINS if name != domain]) for i in (0, 1))
    train(network, images, labels, epochs=15, lr=0.02, augment=random_shift(4, flip=True))
    scene = divide(f"pacs/{domain}", *parts[domain], 7, shots=5)
    return network, source_of(network, np.random.default_rng(0).permutation(images)), [scene], None


def images_of(domain):
    config = DataConfig(source="folder", path=str(DATA / "pacs" / domain), image_size=32)
    pool = load_pools(config, base_dir=Path())["all"]
    return pool.load(np.arange(len(pool.targets))), pool.targets


def named(source: str, scenes: dict, normalize: Normalize) -> list[SceneData]:
    return [
        divide(f"{source}/{name}", normalised(images, normalize), labels, 10, shots=10)
        for name, (images, labels) in scenes.items()
    ]
