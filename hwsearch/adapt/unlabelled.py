"""The second rung: gradients without labels, from the network's own certainty and from feature statistics."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.adapt.fine_tune import fine_tune
from hwsearch.adapt.statistics import Matching, Statistics
from hwsearch.model.canonical import BATCH_NORMS
from hwsearch.model.train import Loss

MARGIN = 0.4
"""Share of the largest possible entropy above which an example teaches nothing (Niu et al., "EATA", 2022)."""


def sharpen(
    module: nn.Module,
    images: NDArray[np.float32] | Tensor,
    source: Statistics,
    *,
    steps: int = 60,
    lr: float = 1e-3,
    calibration: float = 0.1,
    diversity: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """A copy of `module` whose norms' scales and shifts were trained to be certain of the scene's images.

    The loss is the entropy of reliable predictions (Wang et al., "Tent", 2021), weighted by how reliable they are (Niu
    et al., "Efficient test-time model adaptation without forgetting", 2022), plus `calibration` times the divergence of
    the features from the source's, less `diversity` times the entropy of the mean prediction: without that, one class
    may take all.

    Args:
        module: Left as it is; its batch norms should have the scene's statistics already.
        images: Of the scene [N, ...].
        source: Statistics of the source.
        steps: Of the optimiser.
        lr: Peak learning rate.
        calibration: Weight of the divergence.
        diversity: Weight of the mean prediction's entropy.
        seed: Of the order of images.
    """
    adapted = copy.deepcopy(module)
    trained = {name: value.requires_grad for name, value in adapted.named_parameters()}
    adapted.requires_grad_(requires_grad=False)
    for part in adapted.modules():
        if isinstance(part, (*BATCH_NORMS, nn.LayerNorm)):
            part.requires_grad_()
    with Matching(adapted, source) as matching:
        loss = certainty(matching, calibration=calibration, diversity=diversity)
        fine_tune(
            adapted, images, np.zeros(len(images), np.int64), loss=loss, steps=steps, lr=lr, weight_decay=0, seed=seed
        )
    for name, value in adapted.named_parameters():
        value.requires_grad_(trained[name])
    return adapted.eval()


def certainty(matching: Matching, *, calibration: float, diversity: float) -> Loss:
    """The loss that `sharpen` describes, over logits [N, classes]; targets are ignored."""

    def loss(outputs: Tensor, _targets: Tensor) -> Tensor:
        mean, entropy = outputs.softmax(1).mean(0), _entropy(outputs.softmax(1))
        limit = MARGIN * math.log(outputs.shape[1])
        certain = entropy.detach()
        weight = torch.exp(limit - certain) * (certain < limit)
        return (weight * entropy).mean() + calibration * matching() - diversity * _entropy(mean)

    return loss


def information(outputs: Tensor) -> Tensor:
    """Mutual information of images and predictions in nats, from logits [N, classes]; from 0 to ln(classes)."""
    probabilities = outputs.softmax(1)
    return _entropy(probabilities.mean(0)) - _entropy(probabilities).mean()


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-9).log()).sum(-1)
