"""A network in inference form: every block of branches as the one convolution it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hwsearch.errors import ModelError
from hwsearch.model.canonical import BATCH_NORMS
from hwsearch.model.foreign import one_line
from hwsearch.reparam.blocks import RepBlock

FOREIGN = ("fuse", "reparameterize", "switch_to_deploy")
"""Methods by which blocks of other libraries merge themselves; the first returns the merged module."""

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output: whole networks in float32."""


def merge(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode with every block merged; it computes the same as `model` in eval mode.

    Blocks of other libraries are recognised by a method `fuse`, `reparameterize` or `switch_to_deploy`, as long as they
    still hold a batch norm. Merging twice changes nothing.

    Raises:
        ModelError: a foreign block fails to merge itself.
    """
    if isinstance(model, RepBlock):
        return model.merged().eval()
    merged = copy.deepcopy(model).eval()
    _merge_children(merged, "")
    return merged


def check_same(before: nn.Module, after: nn.Module, inputs: Tensor) -> float:
    """Largest difference of the outputs for `inputs` [N, ...], relative to the largest output or 1.

    Args:
        before: In eval mode.
        after: The same, merged.
        inputs: A few examples.

    Raises:
        ModelError: it exceeds `TOLERANCE`.
    """
    with torch.no_grad():
        expected, found = before(inputs), after(inputs)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"merging changed the outputs by {difference:.1e} of the largest",
            allowed=f"{TOLERANCE:.0e}",
            hint="a block of another library may merge itself wrongly, or not in eval mode",
        )
    return difference


def _merge_children(module: nn.Module, prefix: str) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, RepBlock):
            setattr(module, name, child.merged())
        elif (method := _method(child)) is not None:
            setattr(module, name, _merged_foreign(child, method, path))
        else:
            _merge_children(child, f"{path}.")


def _method(module: nn.Module) -> Callable[[], Any] | None:
    unmerged = any(isinstance(part, BATCH_NORMS) for part in module.modules())
    found = (getattr(module, name, None) for name in FOREIGN) if unmerged else ()
    return next((method for method in found if callable(method)), None)


def _merged_foreign(module: nn.Module, method: Callable[[], Any], path: str) -> nn.Module:
    try:
        returned = method()
    except Exception as error:
        raise ModelError(f"`{path}` ({type(module).__name__}) failed to merge itself", where=one_line(error)) from error
    return returned.eval() if isinstance(returned, nn.Module) else module.eval()
