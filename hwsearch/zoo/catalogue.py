"""What the zoo holds: every network in its two sizes, and how large each is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hwsearch.errors import ModelError, did_you_mean
from hwsearch.model.canonical import LAYER_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A network of the zoo in one size.

    Attributes:
        name: Under which it is listed.
        factory: What a study's `model` is.
        arguments: What a study's `model_args` are.
        input_shape: Of one image.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, int, int]

    def build(self) -> nn.Module:
        """The network in eval mode, its weights random."""
        module, _, function = self.factory.partition(":")
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
        return factory(**self.arguments).eval()


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a network, and multiply-accumulates of its layers for one image."""

    params: int
    macs: int


_CIFAR = ("resnet:resnet20", "resnet:resnet56")
_BOTH = (
    "resnet_imagenet:resnet18",
    "resnet_imagenet:resnet34",
    "resnet_imagenet:resnet50",
    "mobilenet_v1:mobilenet_v1",
    "mobilenet_v2:mobilenet_v2",
    "squeezenet:squeezenet",
    "shufflenet_v2:shufflenet_v2",
    "repvgg:repvgg_a0",
    "vit:vit_tiny",
)


def catalogue() -> tuple[Entry, ...]:
    """Networks for 32×32 images and 10 classes, then those for 224×224 and 1000, whose names end in ``-224``."""
    large = {"classes": 1000, "small": False}
    return (
        *(_entry(path) for path in (*_CIFAR, *_BOTH)),
        *(_entry(path, suffix="-224", arguments=large, size=224) for path in _BOTH),
    )


def find(name: str) -> Entry:
    """The network of that name.

    Raises:
        ModelError: there is none.
    """
    known = {entry.name: entry for entry in catalogue()}
    if name not in known:
        raise ModelError(f"no network `{name}` in the zoo", allowed=", ".join(known), hint=did_you_mean(name, known))
    return known[name]


def size(entry: Entry) -> Size:
    """How large a network is; nothing is computed or stored for it."""
    macs = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal macs
        weight: Tensor = layer.weight  # type: ignore[assignment]
        macs += output.numel() * weight[0].numel()

    with torch.device("meta"), torch.no_grad():
        module = entry.build()
        for layer in module.modules():
            if isinstance(layer, LAYER_TYPES):
                layer.register_forward_hook(count)
        module(torch.empty(1, *entry.input_shape))
    return Size(params=sum(parameter.numel() for parameter in module.parameters()), macs=macs)


def _entry(path: str, *, suffix: str = "", arguments: Mapping[str, Any] | None = None, size: int = 32) -> Entry:
    name = path.partition(":")[2]
    return Entry(
        name=f"{name}{suffix}",
        factory=f"hwsearch.zoo.{path}",
        arguments=arguments or {},
        input_shape=(3, size, size),
    )
