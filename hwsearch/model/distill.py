"""Knowledge distillation: training on another network's outputs beside the labels (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.model.train import Loss


class Taught(nn.Module):
    """A student that returns the teacher's outputs beside its own: [N, ...] to [N, 2, classes], for `distillation`.

    Args:
        student: What is trained, in place.
        teacher: Another module than the student; put into eval mode for good, and frozen.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Self:  # noqa: D102 - as torch declares it
        self.training = mode
        self.student.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        with torch.no_grad():
            known = self.teacher(x)
        return torch.stack((self.student(x), known), dim=1)


def distillation(weight: float, temperature: float) -> Loss:
    """A loss over the outputs of `Taught` [N, 2, classes] and class numbers [N].

    (1 - weight) times the cross-entropy with the labels, plus weight times temperature² times the Kullback-Leibler
    divergence of the student's from the teacher's probabilities, both softened by the temperature. The square keeps
    the size of gradients nearly independent of the temperature.
    """

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        student, teacher = outputs.unbind(1)
        soft = functional.kl_div(
            functional.log_softmax(student / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * functional.cross_entropy(student, targets) + weight * temperature**2 * soft

    return loss
