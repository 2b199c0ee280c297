"""How much single choices hurt: the record, how it is asked, and where a run keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.store import read_json, write_json
from hwsearch.types import SCHEMA_VERSION, from_json, to_json

Kind = Literal["keep", "drop", "precision", "pattern"]
Value = int | str
Method = Literal["measured", "fisher"]

SENSITIVITY_FILE = "sensitivity.json"

EVERYWHERE = "*"
"""Name of a float format's effect: one format holds for all layers that are not quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one choice alone does to the network, after repair.

    Attributes:
        kind: ``keep`` (of a prune group), ``drop`` (of a branch), ``precision`` or ``pattern`` of zeros (of a layer).
        name: Group, branch or layer.
        value: Channels kept, 1 for dropped, or the name of a precision or pattern.
        loss: Divergence from the original's outputs; 0 for the choice that changes nothing, infinite if it failed.
        sigma: Standard error of `loss`.
        problem: Why it failed.
    """

    kind: Kind
    name: str
    value: Value
    loss: float
    sigma: float
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The effects of all single choices of a space, in the order of the network.

    Attributes:
        images: Examples they were judged on.
        measure: ``kl`` or ``relative_error``, as in `Divergence`.
        method: ``measured`` on built models, or ``fisher``: estimated from gradients.
    """

    images: int
    measure: str
    method: Method
    effects: tuple[Effect, ...]

    def loss(self, kind: Kind, name: str, value: Value) -> tuple[float, float]:
        """Loss and standard error of one choice.

        Widths between measured ones are interpolated so that fewer channels never cost less. A float format's loss is
        the whole network's, in equal parts.

        Raises:
            ConfigError: nothing is known of this choice.
        """
        found = {e.value: e for e in self.effects if e.kind == kind and e.name == name}
        if not found:
            raise self._unknown(kind, name)
        if kind == "keep" and isinstance(value, int):
            return _at_width(found, value)
        if kind == "drop" and not value:
            return 0.0, 0.0
        if kind == "precision" and value not in found:
            return self._float_share(name, value)
        if value not in found:
            raise self._unknown(kind, name, value)
        return found[value].loss, found[value].sigma

    def _float_share(self, layer: str, value: Value) -> tuple[float, float]:
        known = (e for e in self.effects if e.kind == "precision" and e.name == EVERYWHERE and e.value == value)
        effect = next(known, None)
        if effect is None:
            raise self._unknown("precision", layer, value)
        layers = len({e.name for e in self.effects if e.kind == "precision"} - {EVERYWHERE})
        return effect.loss / layers, effect.sigma / layers

    def _unknown(self, kind: Kind, name: str, value: Value | None = None) -> ConfigError:
        names = [e.name for e in self.effects if e.kind == kind]
        values = [str(e.value) for e in self.effects if e.kind == kind and e.name == name]
        return ConfigError(
            f"no sensitivity is known for {kind} `{name}`" + ("" if value is None else f" = {value}"),
            allowed=", ".join(values or dict.fromkeys(names)) or "nothing",
            hint=did_you_mean(name, names) if name not in names else None,
        )


def write_sensitivity(folder: Path, found: Sensitivity) -> None:
    """Keep the sensitivities of a run in its folder."""
    write_json(folder / SENSITIVITY_FILE, {"schema_version": SCHEMA_VERSION, **to_json(found)})


def read_sensitivity(folder: Path) -> Sensitivity | None:
    """The sensitivities of a run; None if none were determined.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / SENSITIVITY_FILE
    if not path.exists():
        return None
    data = read_json(path)
    try:
        data.pop("schema_version")
        return from_json(Sensitivity, data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged", where=str(error), hint="delete it and search again") from error


def _at_width(found: Mapping[Value, Effect], width: int) -> tuple[float, float]:
    """Loss at a width, between the measured ones, which are made to fall from narrow to wide first."""
    known = sorted((int(e.value), e.loss, e.sigma) for e in found.values() if math.isfinite(e.loss))
    widths, losses, sigmas = np.array(known).T
    failed = width in found and not math.isfinite(found[width].loss)
    if failed or width < widths[0]:
        return math.inf, 0.0
    if width >= widths[-1]:
        return 0.0, 0.0
    certainty = 1 / (np.square(sigmas) + (1e-3 * losses.max() + 1e-12) ** 2)
    falling = isotonic_regression(losses, weights=certainty, increasing=False).x
    loss = np.interp(width, widths, np.sqrt(falling)) ** 2  # a divergence grows with the square of what is missing
    return float(loss), float(np.interp(width, widths, sigmas))
