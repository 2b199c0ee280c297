"""What a scene adds to a base network, as files: ``adapter.safetensors`` and ``adapter.json``.

The tensors are those of the adapters, and every other one that differs from the base network's: the head, statistics of
batch norms. The base network itself is named by its hash and never copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwsearch.adapt.insert import AdapterSpec, insert, is_adapted
from hwsearch.errors import ConfigError
from hwsearch.model.graph import weights_sha256
from hwsearch.store import atomic_write, read_json, sha256_file, write_json
from hwsearch.types import from_json, to_json

TENSORS, FACTS = "adapter.safetensors", "adapter.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """The content of ``adapter.json``.

    Attributes:
        base_sha256: What names the network the adapters belong to: `weights_sha256` of it, or the writer's own name.
        tensors_sha256: Of ``adapter.safetensors``.
        spec: Which adapters; None where only other tensors changed.
        bytes: Of ``adapter.safetensors``: what one more scene takes.
        facts: What the writer wants to keep: scene, labels used, accuracy.
    """

    base_sha256: str
    tensors_sha256: str
    spec: AdapterSpec | None
    bytes: int
    facts: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


def save_adapter(
    folder: Path,
    adapted: nn.Module,
    base: nn.Module,
    spec: AdapterSpec | None,
    facts: Mapping[str, Any] | None = None,
    *,
    identity: str | None = None,
) -> AdapterFile:
    """Write what makes `adapted` of `base` into `folder`, and return what ``adapter.json`` says.

    Args:
        folder: Made if it is not there; each file appears whole or not at all.
        adapted: ``insert(base, spec)``, trained; or `base` with other statistics and weights, if `spec` is None.
        base: The network without adapters.
        spec: What it was inserted with.
        facts: JSON-ready data to keep beside it.
        identity: What names `base`; None for the hash of its weights.
    """
    from safetensors.torch import save

    with atomic_write(folder / TENSORS) as stream:
        stream.write(save(_changes(adapted, base)))
    written = AdapterFile(
        base_sha256=identity or weights_sha256(base),
        tensors_sha256=sha256_file(folder / TENSORS),
        spec=spec,
        bytes=(folder / TENSORS).stat().st_size,
        facts=dict(facts or {}),
    )
    write_json(folder / FACTS, to_json(written))
    return written


def read_facts(folder: Path) -> AdapterFile:
    """What ``adapter.json`` says.

    Raises:
        ConfigError: it is missing, damaged, or of another version, or the tensors beside it are not the ones it names.
    """
    data = read_json(folder / FACTS)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{folder / FACTS} is of another version of hwsearch",
            where=f"schema_version = {version}",
            allowed=str(SCHEMA_VERSION),
        )
    try:
        found = from_json(AdapterFile, data)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / FACTS} is damaged", where=str(error)) from error
    if not (folder / TENSORS).is_file() or sha256_file(folder / TENSORS) != found.tensors_sha256:
        raise ConfigError(f"{folder / TENSORS} is not the file that {FACTS} describes", hint="adapt again")
    return found


def load_adapter(folder: Path, base: nn.Module, identity: str | None = None) -> nn.Module:
    """A copy of `base` with the adapters and the other changed tensors in `folder`; not merged yet.

    Args:
        folder: What `save_adapter` wrote.
        base: The network they belong to.
        identity: What names it, if it was saved with a name; None for the hash of its weights.

    Raises:
        ConfigError: the files are missing or damaged, or belong to another base network.
    """
    from safetensors.torch import load

    facts = read_facts(folder)
    found = identity or weights_sha256(base)
    if found != facts.base_sha256:
        raise ConfigError(
            f"the adapter in {folder} belongs to another network",
            where=f"base {facts.base_sha256[:12]}, found {found[:12]}",
            hint="adapt this network, or name the one the adapter was made for",
        )
    adapted = _inserted(base, facts.spec)
    tensors = load((folder / TENSORS).read_bytes())
    with torch.no_grad():
        state = adapted.state_dict()
        if unknown := sorted(tensors.keys() - state.keys()):
            raise ConfigError(f"{folder / TENSORS} holds a tensor the network has not: {unknown[0]}")
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return adapted.eval()


def _inserted(base: nn.Module, spec: AdapterSpec | None) -> nn.Module:
    return copy.deepcopy(base) if spec is None else insert(base, spec)


def _changes(adapted: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Tensors of `adapted` that `base` has not, or has with other values."""
    wrapped = [f"{name}." for name, layer in adapted.named_modules() if is_adapted(layer)]
    original = base.state_dict()
    changed = {}
    for name, tensor in adapted.state_dict().items():
        owner = next((prefix for prefix in wrapped if name.startswith(f"{prefix}base_layer.")), None)
        plain = name if owner is None else owner + name.removeprefix(f"{owner}base_layer.")
        if plain not in original or not torch.equal(original[plain], tensor):
            changed[name] = tensor.detach().contiguous().clone()
    return changed
