"""Batch norms behind convolutions that have none, so that a merged network can be trained on, at low precision too."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwsearch.reparam.blocks import Plain
from hwsearch.reparam.geometry import Geometry

LEAST_VARIANCE = 1e-12


def reinsert_batch_norm(model: nn.Module, inputs: Tensor, *, layers: Sequence[str] = ("*",)) -> nn.Module:
    """A copy of `model` whose convolutions are followed by a batch norm; in eval mode it computes the same.

    Each batch norm takes the statistics of what its convolution gives for `inputs`, and undoes itself by its scale and
    shift (Ding et al., "RepVGG", section on quantisation). `hwsearch.reparam.merge` folds them in again after training.

    Args:
        model: Merged, in eval mode.
        inputs: Calibration examples [N, ...].
        layers: Globs over names of convolutions; those that are dilated or padded unusually stay as they are.
    """
    copied = copy.deepcopy(model)
    chosen = {
        name: module
        for name, module in copied.named_modules()
        if isinstance(module, nn.Conv2d)
        and Geometry.of(module) is not None
        and any(fnmatch.fnmatch(name, glob) for glob in layers)
    }
    norms = _measured(copied, chosen, inputs)
    for name, conv in chosen.items():
        geometry = Geometry.of(conv)
        assert geometry is not None
        block = Plain(geometry).to(conv.weight.device, conv.weight.dtype)
        block.take(conv, norms[name])
        copied.set_submodule(name, block.train(model.training))
    return copied


def _measured(model: nn.Module, convs: dict[str, nn.Conv2d], inputs: Tensor) -> dict[str, nn.BatchNorm2d]:
    """Batch norms with the statistics of each convolution's output that return it unchanged."""
    norms: dict[str, nn.BatchNorm2d] = {}
    names = {conv: name for name, conv in convs.items()}

    def measure(conv: nn.Module, _inputs: object, output: Tensor) -> None:
        norms[names[conv]] = _unchanging(output)  # type: ignore[index]

    hooks = [conv.register_forward_hook(measure) for conv in convs.values()]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return norms


def _unchanging(output: Tensor) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(output.shape[1]).to(output.device, output.dtype)
    variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
    norm.running_mean, norm.running_var = mean, variance.clamp(min=LEAST_VARIANCE)
    with torch.no_grad():
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(mean)
    return norm
