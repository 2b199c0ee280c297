"""A network by name: a factory in a package or a file, or an exported program; and its weights, loaded safely."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwsearch.errors import ModelError, did_you_mean
from hwsearch.model.foreign import one_line, quiet
from hwsearch.model.importing import import_object
from hwsearch.model.pt2 import load_pt2

State = dict[str, Tensor]

STATE_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")

SHOWN = 3


def load_model(
    spec: str, *, weights: Path | None = None, model_args: Mapping[str, Any] | None = None, base_dir: Path = Path()
) -> nn.Module:
    """The network `spec` names, in eval mode; what a factory leaves to chance comes out the same each time.

    Example:
        >>> network = hs.load_model("hwsearch.zoo.resnet:resnet20")
        >>> sum(parameter.numel() for parameter in network.parameters())
        272282

    Args:
        spec: ``package.module:factory``, ``path/file.py:factory`` or ``path/model.pt2``.
        weights: State dict (``.pt``, ``.pth``, ``.th``, ``.safetensors``), bare or under ``state_dict``, ``model`` or
            ``model_state_dict``; None for what the factory itself sets.
        model_args: Keyword arguments of the factory.
        base_dir: What relative paths are relative to.

    Raises:
        ModelError: anything is missing, fails, does not fit or holds NaN.
    """
    if spec.endswith(".pt2"):
        module = load_pt2(_existing(base_dir / spec, "model file"))
    else:
        module = _build(spec, dict(model_args or {}), base_dir)
    if weights is not None:
        path = _existing(base_dir / weights, "weights file")
        _load_state(module, _unwrapped(_read(path), path), path)
    _check_finite(module, weights)
    return module.eval()


# --------------------------------------------------------------------------- factories


def _build(spec: str, arguments: dict[str, Any], base_dir: Path) -> nn.Module:
    factory = import_object(spec, base_dir=base_dir, what="model factory", error=ModelError)
    if not callable(factory):
        raise ModelError(f"`{spec}` is a {type(factory).__name__}, not a model factory", allowed="a function")
    _check_arguments(factory, spec, arguments)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are the same each time, so that a search of them can be resumed
            module = factory(**arguments)
    except Exception as error:
        raise ModelError(f"model factory `{spec}` failed", where=one_line(error)) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model factory `{spec}` returned a {type(module).__name__}", allowed="a torch.nn.Module")
    return module


def _check_arguments(factory: Callable[..., Any], spec: str, arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = list(signature.parameters)
        unknown = next((name for name in arguments if name not in known), None)
        raise ModelError(
            f"model factory `{spec}` does not take these model_args: {error}",
            where=f"model_args = {dict(arguments)}",
            allowed=", ".join(known) or "no arguments",
            hint=None if unknown is None else did_you_mean(unknown, known),
        ) from error


# --------------------------------------------------------------------------- weights


def _existing(path: Path, what: str) -> Path:
    path = path.expanduser()
    if path.is_file():
        return path
    unset = re.findall(r"\$\{?(\w+)\}?", str(path))
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = f"the environment variable {unset[0]} is not set" if unset else did_you_mean(path.name, near)
    raise ModelError(f"{what} not found: {path}", hint=hint)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"weights file refused: {path} holds more than tensors, and loading it could run code",
            hint="save the state dict alone: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:
        raise ModelError(f"not a weights file: {path}", where=one_line(error)) from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ModelError(f"reading {path.name} needs safetensors", hint="pip install safetensors") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"not a weights file: {path}", where=str(error)) from error


def _unwrapped(content: Any, path: Path) -> State:
    """The state dict inside what a training script saved, without the prefix a wrapper added."""
    for key in STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(
            f"no state dict in {path}",
            where=f"found: {found or 'nothing'}",
            allowed="a state dict, or a dictionary with one under " + ", ".join(STATE_KEYS),
        )
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


def _load_state(module: nn.Module, state: State, path: Path) -> None:
    own = module.state_dict()
    different = [name for name in state if name in own and own[name].shape != state[name].shape]
    fitting = {name: tensor for name, tensor in state.items() if name not in different}
    result = module.load_state_dict(fitting, strict=False)
    # A counter that inference does not use, absent from old checkpoints.
    absent = [n for n in result.missing_keys if n not in different and not n.endswith("num_batches_tracked")]
    shapes = [f"{name} {list(state[name].shape)} (the model has {list(own[name].shape)})" for name in different]
    findings = {"missing": absent, "not in the model": result.unexpected_keys, "other shape": shapes}
    if any(findings.values()):
        raise ModelError(
            f"the weights in {path.name} are of another architecture than the model",
            where="; ".join(f"{what}: {_some(names)}" for what, names in findings.items() if names),
            hint="check `model`, `model_args` and `weights`",
        )


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _check_finite(module: nn.Module, weights: Path | None) -> None:
    for name, tensor in module.state_dict().items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise ModelError(
                f"`{name}` holds {bad} NaN or infinite values of {tensor.numel()}",
                where=f"weights: {weights}" if weights else "as the model factory made it",
                hint="the training run may have diverged; use an earlier checkpoint",
            )
