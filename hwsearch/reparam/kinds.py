"""Blocks by the names a study file uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.reparam.blocks import ACB, DBB, MobileOne, Plain, QARepVGG, RepBlock, RepVGG
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.orepa import Orepa, OrepaPointwise, OrepaStack, RepVGGOrepa

KINDS: dict[str, type[RepBlock]] = {
    "acb": ACB,
    "dbb": DBB,
    "mobileone": MobileOne,
    "orepa": Orepa,
    "orepa_pointwise": OrepaPointwise,
    "orepa_stack": OrepaStack,
    "plain": Plain,
    "qarepvgg": QARepVGG,
    "repvgg": RepVGG,
    "repvgg_orepa": RepVGGOrepa,
}


def block_class(kind: str) -> type[RepBlock]:
    """The block called `kind`.

    Raises:
        ConfigError: there is none.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown block `{kind}`", allowed=", ".join(KINDS), hint=did_you_mean(kind, KINDS))
    return KINDS[kind]


def make(kind: str, geometry: Geometry, **options: Any) -> RepBlock:
    """A fresh block of this kind.

    Args:
        kind: A key of `KINDS`.
        geometry: Of the convolution it merges into.
        options: The block's own keyword arguments.

    Raises:
        ConfigError: an unknown kind, or an option the kind does not take.
    """
    build: Callable[..., RepBlock] = block_class(kind)
    try:
        return build(geometry, **options)
    except TypeError as error:
        raise ConfigError(f"block `{kind}` does not take these options", where=str(error)) from error
