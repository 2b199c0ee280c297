"""Adapters in a network: put in, merged away, taken out again with the base weights as they were, bit for bit."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hwsearch.adapt.adapter import AdaptedConv2d, AdaptedLinear, ChannelScale, RepAdapter
from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.model.canonical import LAYER_TYPES

Kind = Literal["repadapter", "lora"]

TRANSFORMER_LAYERS = ("qkv", "fc1")
"""Last parts of the names of layers that read a norm in a transformer's block: where RepAdapter stands."""

SPARSE = 0.02
"""Share of zero weights from which on they are a pattern to be kept; training leaves hardly any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """Which adapters a network has.

    Attributes:
        kind: ``repadapter``, or ``lora`` (Hu et al. 2021) through the package ``peft``, which leaves grouped
            convolutions alone, and layers whose weights are zero in a pattern.
        layers: Globs over layer names; empty for the inputs of attention and perceptron in a transformer, and for
            every convolution elsewhere.
        rank: Channels in between.
        groups: Blocks of the second map; a layer whose channels it does not divide takes their greatest common divisor.
        scale: Of what an adapter adds.
        dropout: While training.
        head: Whether the last layer is trained as a whole, unless its weights are zero in a pattern.
        seed: Of the adapters' first weights.
    """

    kind: Kind = "repadapter"
    layers: tuple[str, ...] = ()
    rank: int = 8
    groups: int = 2
    scale: float = 1.0
    dropout: float = 0.1
    head: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSize:
    """What adapters cost.

    Attributes:
        adapters: How many.
        weights: Of the adapters, without their biases.
        parameters: Of the adapters, with them.
        trained: All that is trained: adapters, head, and whatever else is not frozen.
        base: Parameters of the network without adapters.
        trained_bytes: Storage of what is trained, which is all that one more scene adds.
    """

    adapters: int
    weights: int
    parameters: int
    trained: int
    base: int
    trained_bytes: int


def insert(model: nn.Module, spec: AdapterSpec | None = None) -> nn.Module:
    """A copy of `model` with adapters, all else frozen but the head if the spec says so; it computes the same.

    Weights that are zero in a pattern stay zero: such layers get a scale and a shift per channel, as grouped ones do.

    Args:
        model: Left as it is.
        spec: See `AdapterSpec`.

    Raises:
        ConfigError: no layer to adapt, sizes that do not fit, or ``lora`` without the package ``peft``.
    """
    spec = spec or AdapterSpec()
    adapted = copy.deepcopy(model)
    names = adapted_layers(adapted, spec.layers)
    adapted.requires_grad_(requires_grad=False)
    head = adapted.get_submodule(head_name(adapted))
    if spec.head and not _is_sparse(head):
        head.requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if spec.kind == "lora":
            from hwsearch.adapt.lora import insert_lora

            dense = [name for name in names if _mixes(adapted.get_submodule(name))]
            if not dense:
                raise ConfigError(
                    "LoRA would fill the zeros of every layer", allowed="dense layers", hint="use `repadapter`"
                )
            return insert_lora(adapted, dense, spec.rank, spec.scale, spec.dropout)
        for name in names:
            layer = adapted.get_submodule(name)
            adapted.set_submodule(name, _adapted(layer, spec).train(layer.training))
    return adapted


def merge(adapted: nn.Module) -> nn.Module:
    """A copy in eval mode without adapters that computes the same, under the names of the network it was made of."""
    merged = copy.deepcopy(adapted).eval()
    for name, layer in list(_adapted_parts(merged)):
        if isinstance(layer, (AdaptedLinear, AdaptedConv2d)):
            merged.set_submodule(name, layer.merged())
        else:
            from hwsearch.adapt.lora import merged_lora

            merged.set_submodule(name, merged_lora(layer))
    return merged


def remove(adapted: nn.Module) -> nn.Module:
    """A copy without adapters and without what they learnt: each adapted layer as it was, bit for bit."""
    removed = copy.deepcopy(adapted)
    for name, layer in list(_adapted_parts(removed)):
        removed.set_submodule(name, layer.base_layer)
    return removed


def base_weights(adapted: nn.Module) -> dict[str, Tensor]:
    """The parameters that merging replaces, by their names in the network without adapters; `unmerge` takes them."""
    return {
        f"{name}.{key}": value.clone()
        for name, layer in _adapted_parts(adapted)
        for key, value in layer.base_layer.state_dict().items()
    }


def unmerge(merged: nn.Module, base: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a merged network with the given weights back, bit for bit; a bias that was not there goes."""
    network = copy.deepcopy(merged)
    for name in dict.fromkeys(key.rpartition(".")[0] for key in base):
        layer = network.get_submodule(name)
        for kind in ("weight", "bias"):
            value = base.get(f"{name}.{kind}")
            setattr(layer, kind, None if value is None else nn.Parameter(value.clone()))
    return network


def size(adapted: nn.Module) -> AdapterSize:
    """What the adapters of a network cost in parameters and storage."""
    parts = dict(_adapted_parts(adapted))
    own = {
        f"{name}.{key}": value
        for name, layer in parts.items()
        for key, value in layer.named_parameters()
        if not key.startswith("base_layer.")
    }
    trained = [value for value in adapted.parameters() if value.requires_grad]
    everything = sum(value.numel() for value in adapted.parameters())
    parameters = sum(value.numel() for value in own.values())
    return AdapterSize(
        adapters=len(parts),
        weights=sum(value.numel() for value in own.values() if value.dim() > 1),
        parameters=parameters,
        trained=sum(value.numel() for value in trained),
        base=everything - parameters,
        trained_bytes=sum(value.numel() * value.element_size() for value in trained),
    )


def adapted_layers(model: nn.Module, globs: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the layers that adapters go to.

    Frozen layers, such as shortcuts of fixed weights, and the last layer have none.

    Raises:
        ConfigError: the globs match no layer, or the network has none.
    """
    last = head_name(model)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.requires_grad and name != last
    }
    inputs = tuple(name for name in layers if name.rpartition(".")[2] in TRANSFORMER_LAYERS)
    convolutions = tuple(name for name, layer in layers.items() if isinstance(layer, nn.Conv2d))
    chosen = [name for name in layers if any(fnmatch.fnmatch(name, glob) for glob in globs)]
    found = tuple(chosen) if globs else inputs or convolutions
    if not found:
        raise ConfigError(
            "no layer to adapt",
            where=f"layers = {list(globs)}",
            allowed=", ".join([*layers][:8]) or "nothing: no Linear or Conv2d of the network is trained",
            hint=did_you_mean(globs[0], layers) if globs else None,
        )
    return found


def head_name(model: nn.Module) -> str:
    """Name of the last layer; the classifier of a network whose modules are registered in the order they run."""
    names: list[str] = [name for name, layer in model.named_modules() if isinstance(layer, LAYER_TYPES)]
    return names[-1]


def is_adapted(layer: nn.Module) -> bool:
    """Whether a module is a layer with an adapter."""
    return isinstance(getattr(layer, "base_layer", None), nn.Module)


def _adapted(layer: nn.Module, spec: AdapterSpec) -> nn.Module:
    linear = isinstance(layer, nn.Linear)
    channels: Any = layer.in_features if linear else layer.out_channels
    adapter = _rep_adapter(channels, spec) if _mixes(layer) else ChannelScale(channels, scale=spec.scale)
    wrapped: Any = AdaptedLinear if linear else AdaptedConv2d
    found: nn.Module = wrapped(layer, adapter.to(layer.weight.device, layer.weight.dtype))  # type: ignore[arg-type]
    return found


def _mixes(layer: nn.Module) -> bool:
    """Whether an adapter of the layer may mix channels and leave its weight as it is: dense, and not in groups."""
    return getattr(layer, "groups", 1) == 1 and not _is_sparse(layer)


def _is_sparse(layer: Any) -> bool:
    if layer.weight.is_meta:  # a network that only has its sizes
        return False
    return SPARSE < float((layer.weight == 0).float().mean()) < 1


def _rep_adapter(channels: int, spec: AdapterSpec) -> RepAdapter:
    groups = math.gcd(spec.groups, channels)
    return RepAdapter(channels, rank=spec.rank, groups=groups, scale=spec.scale, dropout=spec.dropout)


def _adapted_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if is_adapted(layer):
            yield name, layer
