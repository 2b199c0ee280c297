"""The third rung: adapters and head trained on a few labels of the scene, without losing what the network knew."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.adapt.fine_tune import BATCH, fine_tune
from hwsearch.adapt.insert import AdapterSpec, insert
from hwsearch.adapt.statistics import Matching, Statistics
from hwsearch.model.train import Augment, Loss

TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """How adapters are trained.

    Attributes:
        spec: Which adapters.
        steps: Of the optimiser.
        lr: Peak learning rate.
        calibration: Weight of the divergence of the scene's features from the source's.
        distillation: Weight of the teacher's answers on replayed source images; 0 lets the source be forgotten.
        seed: Of first weights and order.
    """

    spec: AdapterSpec = field(default_factory=AdapterSpec)
    steps: int = 200
    lr: float = 1e-2
    calibration: float = 0.1
    distillation: float = 0.1
    seed: int = 0


def migrate(
    module: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    replay: NDArray[np.float32],
    teacher: nn.Module,
    source: Statistics,
    how: Migration | None = None,
    *,
    augment: Augment | None = None,
) -> nn.Module:
    """A copy of `module` with trained adapters, in eval mode and not merged yet.

    The loss is the cross-entropy on the labelled images, plus `calibration` times the divergence of their features from
    the source's, plus `distillation` times T² KL(teacher ‖ network) on the replayed images (Li and Hoiem, "Learning
    without forgetting", 2016). Labelled images are repeated until they are as many as the replayed ones.

    Args:
        module: Left as it is.
        images: The few of the scene, [n, ...].
        labels: Their classes [n].
        replay: Source images [m, ...]; may be none.
        teacher: The network before adaptation, which answers for the replayed images.
        source: Statistics of the source.
        how: See `Migration`.
        augment: On each batch.
    """
    how = how or Migration()
    adapted = insert(module, how.spec)
    inputs, targets = _mixed(images, labels, replay, teacher)
    with Matching(adapted, source) as matching:
        loss = remembering(matching, calibration=how.calibration, distillation=how.distillation)
        fine_tune(adapted, inputs, targets, loss=loss, steps=how.steps, lr=how.lr, seed=how.seed, augment=augment)
    return adapted.eval()


def remembering(matching: Matching, *, calibration: float, distillation: float) -> Loss:
    """The loss that `migrate` describes: targets [N, 1 + classes] hold a label, or −1, and the teacher's logits."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        fresh, total = targets[:, 0] >= 0, outputs.sum() * 0
        if fresh.any():
            total = total + functional.cross_entropy(outputs[fresh], targets[fresh, 0].long())
            total = total + calibration * matching(fresh)
        if distillation and not fresh.all():
            total = total + distillation * _softened(outputs[~fresh], targets[~fresh, 1:])
        return total

    return loss


def answers(network: nn.Module, images: NDArray[np.float32] | Tensor) -> Tensor:
    """What a network answers to images [N, ...], a batch at a time and without gradients."""
    network = network.eval()
    with torch.inference_mode():
        parts = [network(part) for part in torch.split(torch.as_tensor(images), 4 * BATCH)]
    return torch.cat(parts).clone()


def _mixed(
    images: NDArray[np.float32], labels: NDArray[np.int64], replay: NDArray[np.float32], teacher: nn.Module
) -> tuple[Tensor, Tensor]:
    repeats = max(1, round(len(replay) / len(images)))
    fresh = torch.from_numpy(np.concatenate([images] * repeats))
    if not len(replay):
        return fresh, torch.from_numpy(labels.astype(np.float32))[:, None]
    known = answers(teacher, replay)
    label = torch.from_numpy(np.tile(labels, repeats)).float()[:, None]
    return torch.cat([fresh, torch.from_numpy(replay)]), torch.cat(
        [
            torch.cat([label, torch.zeros(len(label), known.shape[1])], dim=1),
            torch.cat([-torch.ones(len(known), 1), known], dim=1),
        ]
    )


def _softened(outputs: Tensor, teacher: Tensor) -> Tensor:
    return TEMPERATURE**2 * functional.kl_div(
        functional.log_softmax(outputs / TEMPERATURE, dim=1),
        functional.log_softmax(teacher / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
