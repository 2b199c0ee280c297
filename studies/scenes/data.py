"""Source networks and the scenes they are sent to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hwsearch.adapt.corruptions import CORRUPTIONS, corrupt
from hwsearch.adapt.follow import accuracy_of
from hwsearch.adapt.ladder import Source
from hwsearch.adapt.scenes import SceneData, divide
from hwsearch.adapt.statistics import stored
from hwsearch.config import DataConfig
from hwsearch.model.load import load_model
from hwsearch.model.sources import DIGITS, IMAGENET, load_pools
from hwsearch.model.train import random_shift, train
from hwsearch.zoo.resnet import ResNet

DATA = Path(os.environ.get("HWSEARCH_DATA", "/nowhere"))
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
SCENES = {"digits": (*CORRUPTIONS, "mnist"), "cifar10": tuple(CORRUPTIONS), "pacs": DOMAINS}
REPLAY = 128


@dataclass(frozen=True, slots=True)
class Case:
    """A network, and the scene it is sent to.

    Attributes:
        network: In eval mode.
        source: What is kept of the data it was trained on.
        data: The scene.
        clean: Accuracy on other images of the source; None if there are none.
    """

    network: nn.Module
    source: Source
    data: SceneData
    clean: float | None


def opened(suite: str) -> Callable[[str], Case]:
    """A function from the names of a suite's scenes to cases."""
    return {"digits": digits, "cifar10": cifar10, "pacs": lambda: pacs}[suite]()


def digits():
    """A small ResNet of half width trained on scikit-learn's digits; corruptions, and MNIST as another hand."""
    pools = load_pools(DataConfig(source="digits"), base_dir=Path())
    learn, other = pools["train"], pools["test"]
    images = normalised(learn.inputs, DIGITS)
    torch.manual_seed(0)
    network = ResNet(1, 10, width=0.5)
    train(network, images, learn.targets, epochs=12, lr=0.1, augment=random_shift(2))
    clean = accuracy_of(network, normalised(other.inputs, DIGITS), other.targets)

    def case(kind):
        found = mnist() if kind == "mnist" else (corrupt(other.inputs, kind, 5), other.targets)
        return Case(network, source_of(network, images), named("digits", kind, *found, DIGITS), clean)

    return case


def mnist(count=2000):
    """MNIST padded to 32×32, three equal channels, uint8."""
    with np.load(DATA / "mnist" / "t10k.npz") as archive:
        images, labels = archive["images"][:count], archive["labels"][:count]
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(images[:, None], 3, axis=1), labels.astype(np.int64)


def cifar10(count=2000):
    """The pretrained ResNet-20 and corrupted test images."""
    network, pools = resnet20(), cifar10_pools()
    replay = normalised(pools["train"].inputs[:REPLAY], IMAGENET)
    images, labels = pools["test"].inputs[:count], pools["test"].targets[:count]
    clean = accuracy_of(network, normalised(images, IMAGENET), labels)

    def case(kind):
        data = named("cifar10", kind, corrupt(images, kind, 5), labels, IMAGENET)
        return Case(network, source_of(network, replay), data, clean)

    return case


def resnet20():
    return load_model("hwsearch.zoo.resnet:resnet20", weights=DATA / "cifar10" / "resnet20-12fca82f.th")


def cifar10_pools():
    return load_pools(DataConfig(source="cifar10", path=str(DATA / "cifar10")), base_dir=Path())


def pacs(domain):
    """ResNet-20 of CIFAR-10, its head replaced and all of it trained on three domains; the fourth is the scene."""
    network = resnet20()
    torch.manual_seed(0)
    network.linear = nn.Linear(64, 7)
    parts = {name: images_of(name) for name in DOMAINS}
    images, labels = (np.concatenate([parts[name][i] for name in DOMAINS if name != domain]) for i in (0, 1))
    train(network, images, labels, epochs=15, lr=0.02, augment=random_shift(4, flip=True))
    scene = divide(f"pacs/{domain}", *parts[domain], 7, shots=5)
    return Case(network, source_of(network, np.random.default_rng(0).permutation(images)), scene, None)


def images_of(domain):
    config = DataConfig(source="folder", path=str(DATA / "pacs" / domain), image_size=32)
    pool = load_pools(config, base_dir=Path())["all"]
    return pool.load(np.arange(len(pool.targets))), pool.targets


def normalised(images, normalize):
    return normalize(images.astype(np.float32) / 255)


def source_of(network, images):
    return Source(statistics=stored(network), replay=images[:REPLAY])


def named(suite, kind, images, labels, normalize):
    return divide(f"{suite}/{kind}", normalised(images, normalize), labels, 10, shots=10)
