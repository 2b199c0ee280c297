"""LoRA (Hu et al., "Low-rank adaptation of large language models", 2021) through the package ``peft``."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from hwsearch.errors import ConfigError


def insert_lora(model: nn.Module, layers: Sequence[str], rank: int, scale: float, dropout: float) -> nn.Module:
    """`model` with a low-rank map beside each of the layers, in place: ``W x + scale · B A x``, zero at first.

    Raises:
        ConfigError: ``peft`` is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "adapters of the kind `lora` need the package peft",
            hint="pip install 'hwsearch[adapt]', or use `repadapter`",
        )
    from peft import LoraConfig, inject_adapter_in_model

    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    # peft multiplies by lora_alpha / r, and takes fractions although it says integers.
    alpha: Any = scale * rank
    # A list would also match layers whose names end like one of these; an expression matches whole names.
    names = "|".join(map(re.escape, layers))
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=f"({names})")
    adapted: nn.Module = inject_adapter_in_model(config, model)
    for name in trained:  # peft freezes everything but its own
        adapted.get_parameter(name).requires_grad_()
    return adapted


def merged_lora(layer: Any) -> nn.Module:
    """The plain layer that computes what a layer of ``peft`` computes; `layer` is used up."""
    layer.merge(safe_merge=True)
    base: nn.Module = layer.base_layer
    return base
