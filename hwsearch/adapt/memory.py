"""Not to forget: examples kept for replay, or the weights that matter held in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


class Memory:
    """Labelled examples of the source, for good, and of what came since: a random sample of each class.

    Reservoir sampling (Vitter 1985) for each class on its own, so that a frequent class does not crowd out the others.

    Args:
        images: Of the source [m, ...].
        labels: Their classes [m].
        per_class: Examples kept of each class besides those.
        seed: Of the sample.
    """

    def __init__(self, images: Images, labels: Labels, *, per_class: int = 30, seed: int = 0) -> None:
        self._source = (images, labels)
        self._per_class = per_class
        self._rng = np.random.default_rng(seed)
        self._kept: dict[int, list[NDArray[Any]]] = {}
        self._seen: dict[int, int] = {}

    def add(self, images: Images, labels: Labels) -> None:
        """Let examples [n, ...] take part in the sample."""
        for image, label in zip(images, labels.tolist(), strict=True):
            kept = self._kept.setdefault(label, [])
            self._seen[label] = self._seen.get(label, 0) + 1
            if len(kept) < self._per_class:
                kept.append(image)
            elif (place := int(self._rng.integers(self._seen[label]))) < self._per_class:
                kept[place] = image

    def examples(self) -> tuple[Images, Labels]:
        """Everything that is kept, source first."""
        images, labels = self._source
        for label, kept in sorted(self._kept.items()):
            images = np.concatenate([images, np.stack(kept)])
            labels = np.concatenate([labels, np.full(len(kept), label, np.int64)])
        return images, labels


class Anchored:
    """The penalty of elastic weight consolidation (Kirkpatrick et al. 2017): weights that matter are held in place.

        ½ strength · Σ F (w − w₀)²,   F = E[(∂ log p(y | x) / ∂w)²]

    Args:
        network: As it is now; what is frozen in it is left out.
        images: Of what is not to be forgotten [n, ...].
        labels: Their classes [n].
        strength: Of the penalty.
    """

    def __init__(self, network: nn.Module, images: Images, labels: Labels, *, strength: float = 1000.0) -> None:
        self._strength = strength
        trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._start = {name: value.detach().clone() for name, value in trained.items()}
        self._importance = {name: torch.zeros_like(value) for name, value in trained.items()}
        network.eval()
        for image, label in zip(torch.from_numpy(images), torch.from_numpy(labels), strict=True):
            loss = functional.cross_entropy(network(image[None]), label[None])
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    self._importance[name] += gradient.square() / len(images)

    def __call__(self, network: nn.Module) -> Tensor:
        """The penalty for the weights of `network`, which has the same names."""
        total = torch.zeros(())
        for name, value in network.named_parameters():
            if name in self._start:
                total = total + (self._importance[name] * (value - self._start[name]).square()).sum().cpu()
        return self._strength / 2 * total
