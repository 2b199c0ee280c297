"""A candidate as a network that can be trained: smaller layers, no dropped branches, batch norms back in their places.

Repair works on a network whose batch norms are folded, and training such a network works badly. So norms are put back:
weights get the scale they had before folding, and the norms the statistics of what they now see, with a scale and a
shift that leave the network's function as it was, in training mode as well as in eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.compress.prune import Indices, slice_module
from hwsearch.compress.statistics import CHUNK_IMAGES, find_layer
from hwsearch.model.canonical import LAYER_TYPES
from hwsearch.model.graph import Network
from hwsearch.types import Branch, Candidate

FAINT = 1e-2
"""Of the median scale of a norm's channels; what is fainter was dead in the original, and dividing by it explodes."""


class Nothing(nn.Module):
    """Stands for a layer of a dropped branch: zeros in the shape of its result, from which no gradient comes back."""

    def __init__(self, layer: Any, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self._linear = isinstance(layer, nn.Linear)
        channels = layer.weight.shape[0]
        self._shape = (channels,) if self._linear else (channels, *out_shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Zeros for inputs [N, ...]."""
        before = x.shape[:-1] if self._linear else x.shape[:1]
        return x.new_zeros(*before, *self._shape)


def materialize(
    network: Network,
    candidate: Candidate,
    parameters: Mapping[str, NDArray[np.float32]],
    kept: Mapping[str, Indices],
    images: NDArray[np.float32],
) -> nn.Module:
    """The candidate as a module in eval mode that computes what its parameters, bound into the template, do.

    Its layers have the names of the original's, so `folded_parameters` turns it into parameters again.

    Args:
        network: The traced original; left unchanged.
        candidate: What was kept and dropped.
        parameters: Of the candidate, batch norm folded, as `stitch.parameters_of` finds them.
        kept: Prune group -> channels that stay, for the groups that lose some.
        images: Calibration images [N, ...] for the statistics of batch norms.
    """
    module = slice_module(network.module, network.source, kept)
    _remove(module, [b for b in network.source.branches if b.name in candidate.dropped], network)
    norms = {}
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LAYER_TYPES) and f"{name}.weight" in parameters:
            weight = torch.from_numpy(parameters[f"{name}.weight"]).to(layer.weight.dtype)
            bias = torch.from_numpy(parameters[f"{name}.bias"]).to(layer.weight.dtype)
            norm = network.template.folded.get(name)
            if norm is None:
                _write(layer, weight=weight, bias=bias)
            else:
                norms[name] = module.get_submodule(norm)
                _unfold(layer, norms[name], weight, bias)
    _renew_statistics(module, norms, torch.from_numpy(np.ascontiguousarray(images)))
    if not any(parameter.requires_grad for parameter in module.parameters()):  # a network meant for inference alone
        module.requires_grad_()
    return module


def _remove(module: nn.Module, branches: list[Branch], network: Network) -> None:
    for name in {layer for branch in branches for layer in branch.layers}:
        module.set_submodule(name, Nothing(find_layer(module, name), network.source.layer(name).out_shape))
        if name in network.template.folded:
            module.set_submodule(network.template.folded[name], nn.Identity())


def _unfold(layer: Any, norm: Any, weight: Tensor, bias: Tensor) -> None:
    """Write a folded weight and bias into a layer and the norm behind it, keeping the scale the layer's weight had."""
    width = (norm.running_var + norm.eps).sqrt()
    scale = (torch.ones_like(width) if norm.weight is None else norm.weight.detach()) / width
    usual = scale.abs().median()
    scale = torch.where(scale.abs() > FAINT * usual, scale, usual)
    _write(layer, weight=weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
    before = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias.detach()
    _write(norm, weight=scale * width, bias=bias + scale * before)


def _renew_statistics(module: nn.Module, norms: Mapping[str, Any], images: Tensor) -> None:
    """Give norms the mean and variance of what they now receive, changing scale and shift so that nothing changes."""
    sums = {name: torch.zeros(3, norm.num_features, dtype=torch.float64) for name, norm in norms.items()}

    def count(name: str, output: Tensor) -> None:
        rows = output.movedim(1, -1).flatten(0, -2).double()
        sums[name] += torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), rows.square().sum(0)])

    hooks = [
        find_layer(module, name).register_forward_hook(lambda _, __, output, name=name: count(name, output))
        for name in norms
    ]
    module.eval()
    with torch.inference_mode():
        for chunk in torch.split(images, CHUNK_IMAGES):
            module(chunk)
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        total, first, second = sums[name]
        mean, variance = first / total, (second / total - (first / total).square()).clamp_min(0.0)
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias.detach() - scale * norm.running_mean
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        _write(norm, weight=scale * (norm.running_var + norm.eps).sqrt(), bias=shift + scale * norm.running_mean)


def _write(layer: Any, **values: Tensor) -> None:
    """Put values in place of a layer's parameters, which stay as trainable as its weight is."""
    trainable = layer.weight is None or layer.weight.requires_grad
    for name, value in values.items():
        setattr(layer, name, nn.Parameter(value.clone(), requires_grad=bool(trainable)))
