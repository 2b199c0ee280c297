"""The first rung of the ladder: statistics estimated again from images of the scene, without labels or gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.adapt.statistics import IMAGES, Statistics, channel_rows
from hwsearch.errors import DataError
from hwsearch.model.canonical import BATCH_NORMS

PRIOR, ENOUGH = 16, 512
"""The source counts as so many images, unless there are enough of the scene's."""


def recalibrate(
    module: nn.Module, images: NDArray[np.float32] | Tensor, source: Statistics, *, prior: int | None = None
) -> nn.Module:
    """A copy of `module` in eval mode whose batch norms have the statistics of the scene.

    They become ``(prior · source + n · scene) / (prior + n)`` for n images (Schneider et al., "Improving robustness
    against common corruptions by covariate shift adaptation", 2020), one norm after the other: each sees what the ones
    before it, already done, let through. A network without batch norms gets its biases corrected instead, so that the
    mean of every channel is the source's.

    Args:
        module: Left as it is.
        images: Of the scene [n, ...], the first `IMAGES` are used.
        source: Statistics of the source, for networks without batch norms.
        prior: How many images the source counts for; None for `PRIOR`, or 0 from `ENOUGH` images on.

    Raises:
        DataError: fewer than two images.
    """
    images = torch.as_tensor(images[:IMAGES])
    if len(images) < 2:
        raise DataError(f"{len(images)} images have no statistics", allowed="two or more")
    prior = (PRIOR if len(images) < ENOUGH else 0) if prior is None else prior
    share = len(images) / (prior + len(images))
    adapted = copy.deepcopy(module).eval()
    norms = [norm for norm in adapted.modules() if isinstance(norm, BATCH_NORMS) and norm.track_running_stats]
    handles: list[Any] = [
        norm.register_forward_pre_hook(lambda norm, args: _mix(norm, args[0], share)) for norm in norms
    ]
    if not norms:
        for name, moments in source.items():
            layer = adapted.get_submodule(name)
            handles.append(layer.register_forward_hook(_corrector(moments.mean, share)))
    with torch.no_grad():
        adapted(images)
    for handle in handles:
        handle.remove()
    return adapted


def _mix(norm: Any, inputs: Tensor, share: float) -> None:
    """Just before a norm runs: give it the statistics of what it is about to see."""
    rows = channel_rows(inputs)
    norm.running_mean.lerp_(rows.mean(0), share)
    norm.running_var.lerp_(rows.var(0), share)


def _corrector(mean: Tensor, share: float) -> Any:
    def correct(layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        step = share * (mean - channel_rows(output).mean(0))
        plain = getattr(layer, "base_layer", layer)
        if plain.bias is None:
            plain.bias = nn.Parameter(torch.zeros_like(step))
        plain.bias.add_(step)
        return output + (step.view(-1, 1, 1) if output.dim() == 4 else step)

    return correct
