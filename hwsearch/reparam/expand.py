"""A network in training form: its convolutions as blocks of branches, computing the same as before."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kinds import block_class, make
from hwsearch.reparam.pairs import conv_norm_pairs


def expand(
    model: nn.Module, kind: str, *, layers: Sequence[str] = ("*",), fresh: bool = False, **options: Any
) -> nn.Module:
    """A copy of `model` whose convolutions with batch norm are blocks of branches, under the convolutions' names.

    In eval and in training mode it computes what `model` computes: the full kernel takes the trained weights and the
    other branches start at zero, from where they learn. `hwsearch.reparam.merge` undoes it after training.

    Convolutions the block is not meant for stay as they are: 1×1 for most kinds, and those that are dilated, padded
    other than by half their kernel, frozen, used more than once or not followed by a batch norm.

    Args:
        model: Traceable by `torch.fx`.
        kind: A key of `hwsearch.reparam.kinds.KINDS`.
        layers: Globs over names of convolutions.
        fresh: Blocks keep their own initialisation, for training from the start.
        options: The block's own keyword arguments, e.g. ``squeeze`` and ``prior`` of ``orepa``.

    Raises:
        ConfigError: an unknown kind or option, or nothing to expand.
        ModelError: the model cannot be traced.
    """
    expanded = copy.deepcopy(model)
    for name, norm_name in _chosen(expanded, kind, layers).items():
        conv, norm = expanded.get_submodule(name), expanded.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        geometry = Geometry.of(conv)
        assert geometry is not None
        block = make(kind, geometry, **options).to(conv.weight.device, conv.weight.dtype)
        if not fresh:
            block.take(conv, norm)
        expanded.set_submodule(name, block.train(model.training))
        expanded.set_submodule(norm_name, nn.Identity())
    return expanded


def _chosen(model: nn.Module, kind: str, layers: Sequence[str]) -> dict[str, str]:
    """Convolution -> batch norm, where the kind fits and a glob matches."""
    block, pairs = block_class(kind), conv_norm_pairs(model)
    fitting = {name: norm for name, norm in pairs.items() if _fits(model, name, norm, block.fits)}
    chosen = {name: norm for name, norm in fitting.items() if any(fnmatch.fnmatch(name, glob) for glob in layers)}
    if not chosen:
        raise ConfigError(
            f"no convolution to expand into `{kind}`",
            where=f"layers = {list(layers)}",
            allowed=", ".join([*fitting][:8]) or "none of the network's convolutions fits this kind",
            hint=did_you_mean(layers[0], fitting) if layers else None,
        )
    return chosen


def _fits(model: nn.Module, name: str, norm_name: str, fits: Callable[[Geometry], bool]) -> bool:
    conv, norm = model.get_submodule(name), model.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    geometry = Geometry.of(conv)
    trained = conv.weight.requires_grad and norm.affine and norm.track_running_stats
    return trained and geometry is not None and fits(geometry)
