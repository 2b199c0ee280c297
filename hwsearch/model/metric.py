"""What a model is judged by: top-1 accuracy, or any function of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.model.foreign import one_line
from hwsearch.model.importing import import_object

Outputs = NDArray[np.float32]
Targets = NDArray[Any]

Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number for the outputs of a model.

    Attributes:
        name: ``top1``, or the name of the function.
        higher_is_better: The direction.
        function: ``(outputs [N, ...], targets [N, ...]) -> float``.
        correct: ``(outputs, targets) -> bool [N]`` where the metric is a share of correct examples, else None.
    """

    name: str
    higher_is_better: bool
    function: Callable[[Outputs, Targets], float]
    correct: Callable[[Outputs, Targets], NDArray[np.bool_]] | None = None

    def __call__(self, outputs: Outputs, targets: Targets) -> float:
        """The metric's value.

        Raises:
            ConfigError: a user's function fails or returns no number.
        """
        try:
            return float(self.function(outputs, targets))
        except Exception as error:
            raise ConfigError(
                f"metric `{self.name}` failed on outputs {outputs.shape} and targets {targets.shape}",
                where=one_line(error),
                allowed="a function (outputs, targets) -> float",
            ) from error

    def per_example(self, outputs: Outputs, targets: Targets) -> NDArray[np.bool_] | None:
        """Whether each example is correct, [N]; None for metrics that are no share of examples."""
        return None if self.correct is None else self.correct(outputs, targets)

    def score(self, outputs: Outputs, targets: Targets) -> tuple[float, tuple[float, float] | None]:
        """Value and, where the metric is a share of examples, its 95 % Wilson interval."""
        correct = self.per_example(outputs, targets)
        interval = None if correct is None else wilson_interval(int(correct.sum()), len(correct))
        return self(outputs, targets), interval


def load_metric(spec: str, direction: str = "maximize", *, base_dir: Path) -> Metric:
    """The metric called `spec`: ``top1``, ``file.py:function`` or ``package.module:function``.

    Raises:
        ConfigError: it cannot be found, or `direction` does not fit.
    """
    if spec == "top1":
        if direction != "maximize":
            raise ConfigError("top1 is better when it is higher", where=f"direction = {direction}", allowed="maximize")
        return TOP1
    if ":" not in spec:
        raise ConfigError(
            f"unknown metric `{spec}`",
            allowed="top1, path/file.py:function or package.module:function",
            hint=did_you_mean(spec, ["top1"]),
        )
    function = import_object(spec, base_dir=base_dir, what="metric")
    return metric_from(function, direction)


def metric_from(function: Callable[[Outputs, Targets], float], direction: str = "maximize") -> Metric:
    """A metric out of a function ``(outputs, targets) -> float``; `direction` is ``maximize`` or ``minimize``."""
    if not callable(function):
        raise ConfigError(
            f"the metric is a {type(function).__name__}, not a function",
            allowed="a function (outputs, targets) -> float",
        )
    if direction not in ("maximize", "minimize"):
        raise ConfigError(f"unknown direction `{direction}`", allowed="maximize, minimize")
    name = getattr(function, "__name__", type(function).__name__)
    return Metric(name=name, higher_is_better=direction == "maximize", function=function)


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """95 % interval for a share of `total` independent examples (Wilson 1927); (0, 1) when there are none."""
    if total == 0:
        return 0.0, 1.0
    share, spread = successes / total, Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    # Rounding must not push the share itself out of its interval.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def top1_correct(outputs: Outputs, targets: Targets) -> NDArray[np.bool_]:
    """Whether the largest of each row of `outputs` [N, classes] is the target class [N]; never for a row with NaN."""
    right: NDArray[np.bool_] = outputs.argmax(axis=1) == targets
    return right & np.isfinite(outputs).all(axis=1)


def _top1(outputs: Outputs, targets: Targets) -> float:
    return float(top1_correct(outputs, targets).mean())


TOP1 = Metric(name="top1", higher_is_better=True, function=_top1, correct=top1_correct)
