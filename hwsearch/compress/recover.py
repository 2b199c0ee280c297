"""Giving a compressed network its accuracy back, cheapest means first: statistics, then training.

Training starts from the repaired candidate with its batch norms in place (`materialize`) and learns from the original's
outputs or from labels; where rounding costs accuracy, it ends with rounding in the network (`fake_quantize`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional

from hwsearch.compress import fake_quantize
from hwsearch.compress.distill import Teacher, objective
from hwsearch.compress.features import Watched, stream_ends, with_features
from hwsearch.compress.sparsify import hold_zeros
from hwsearch.errors import EvaluationError, ModelError
from hwsearch.model.canonical import BATCH_NORMS
from hwsearch.model.data import DataSplit
from hwsearch.model.distill import Taught
from hwsearch.model.graph import Network, weights_sha256
from hwsearch.model.template import folded_parameters
from hwsearch.model.train import Loss, random_shift, train
from hwsearch.store import atomic_write
from hwsearch.types import Candidate, TensorRange

Parameters = dict[str, NDArray[np.float32]]
Observe = Callable[[Parameters], Mapping[str, TensorRange]]

PREFIX = "recover."
RESULT = ".pt"
"""Suffix of what training made of a candidate; the two below are states on the way."""
FLOAT, ROUNDED = ".float", ".rounded"
ROUNDED_SHARE, ROUNDED_LR = 0.3, 0.25
"""Of the time and of the learning rate: for the part of training that has rounding in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a candidate is trained; part of the candidate, as its `recipe`.

    Attributes:
        method: From the original's outputs (and labels), or from labels alone.
        minutes: Of training.
        lr: Peak learning rate.
        qat: Whether training ends with rounding in the network.
        weight, temperature: Of the teacher.
        features: Weight of its activations; see `with_features`.
        shift, flip: Augmentation of images.
    """

    method: Literal["distill", "finetune"] = "distill"
    minutes: float
    lr: float
    qat: bool = False
    weight: float = 0.9
    temperature: float = 4.0
    features: float = 0.0
    batch: int = 64
    weight_decay: float = 5e-4
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def choices(self) -> dict[str, str]:
        """The recipe as a candidate holds it."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {f"{PREFIX}{name}": _written(value) for name, value in sorted(named.items())}

    @classmethod
    def of(cls, candidate: Candidate) -> Recipe:
        """The recipe a candidate holds."""
        named = {n.removeprefix(PREFIX): value for n, value in candidate.recipe.items() if n.startswith(PREFIX)}
        return TypeAdapter(cls).validate_strings(named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What training made of a candidate.

    Attributes:
        parameters: Batch norm folded, as the template takes them.
        ranges: Tensor -> learned range, where rounding was trained.
        seconds: Of training, those of interrupted processes included.
        before, after: Score on the search split, with rounding where that was trained.
    """

    parameters: Parameters
    ranges: dict[str, TensorRange]
    seconds: float
    before: float
    after: float


class Recovery:
    """Trains candidates of one network; what is trained once is read from its file.

    Args:
        network: The traced original, which teaches.
        examples: To train on; in none of the splits that judge.
        judge: A module's score on the search split, higher is better.
        probabilities: Whether outputs are logits of class probabilities.
        folder: Where results and the state of interrupted training are kept.
        stop: Asked after every step; training is saved and given up when it says so.
        on_epoch: Told each epoch's number and mean loss.
        clock: Seconds.
    """

    def __init__(
        self,
        network: Network,
        examples: DataSplit,
        *,
        judge: Callable[[nn.Module], float],
        probabilities: bool,
        folder: Path,
        stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[int, float], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._network, self._examples, self._judge = network, examples, judge
        self._probabilities, self._folder = probabilities, folder
        self._stop, self._on_epoch, self._clock = stop, on_epoch, clock
        self._teacher = Teacher(network.module)

    def recovered(self, candidate: Candidate, start: nn.Module, observe: Observe) -> Recovered:
        """The candidate trained by its recipe; goes on where it was interrupted. Zeros of sparse weights stay.

        Args:
            candidate: With a recipe.
            start: Its network, as `materialize` makes it; changed in place.
            observe: Ranges of the tensors that its backend quantises, for parameters.

        Raises:
            EvaluationError: training diverged, or gained nothing.
            TrainingStoppedError: `stop` said so.
        """
        path = self._folder / f"{self._key(candidate, start)}{RESULT}"
        if path.exists():
            return _load(path)
        try:
            found = self._trained(candidate, start, observe, path)
        except ModelError as error:
            _forget(path)
            raise EvaluationError(error.message, stage="recover", kind="diverged", hint=error.hint) from error
        if found.after > found.before:
            _save(path, found)
        _forget(path)
        if found.after <= found.before:
            scores = f"{abs(found.before):.4f} before and {abs(found.after):.4f} at best"
            raise EvaluationError(
                f"training gained nothing on the search split: {scores}",
                stage="recover", kind="no gain", hint="give it more minutes, or fewer points",
            )  # fmt: skip
        return found

    def _trained(self, candidate: Candidate, module: nn.Module, observe: Observe, path: Path) -> Recovered:
        """`module` after training; the state on the way goes into files beside `path`."""
        recipe, folded = Recipe.of(candidate), self._network.template.folded
        start = copy.deepcopy(module)
        if recipe.qat:
            self._insert(start, candidate, observe(folded_parameters(module, folded)))
        before, ranges = self._judge(start), dict[str, TensorRange]()
        hold_zeros(module, candidate.pattern)
        share = 1 - ROUNDED_SHARE * recipe.qat
        seconds, after = self._train(module, candidate, recipe, path.with_suffix(FLOAT), share=share)
        if recipe.qat:
            learned = self._insert(module, candidate, observe(folded_parameters(module, folded)))
            gentle = dataclasses.replace(recipe, lr=ROUNDED_LR * recipe.lr)
            more, after = self._train(module, candidate, gentle, path.with_suffix(ROUNDED), share=ROUNDED_SHARE)
            fake_quantize.remove(module)
            seconds, ranges = seconds + more, {name: found.interval() for name, found in learned.items()}
        parameters = folded_parameters(module, folded)
        return Recovered(parameters=parameters, ranges=ranges, seconds=seconds, before=before, after=after)

    def _insert(
        self, module: nn.Module, candidate: Candidate, ranges: Mapping[str, TensorRange]
    ) -> dict[str, fake_quantize.LearnedRange]:
        """Put rounding into a candidate's network; tensor -> learned range."""
        dropped = [branch for branch in self._network.source.branches if branch.name in candidate.dropped]
        template = self._network.template.without_branches(dropped)
        return fake_quantize.insert(module, template, candidate.precision, ranges)

    def _train(
        self, module: nn.Module, candidate: Candidate, recipe: Recipe, checkpoint: Path, *, share: float
    ) -> tuple[float, float]:
        """Train for a share of the recipe's time; seconds, and the score of the weights that were kept."""
        trained, loss = self._lesson(module, candidate, recipe)
        history = train(
            trained,
            self._examples.inputs,
            self._examples.targets,
            minutes=share * recipe.minutes,
            lr=recipe.lr,
            batch=recipe.batch,
            weight_decay=recipe.weight_decay,
            seed=recipe.seed,
            loss=loss,
            augment=random_shift(recipe.shift, flip=recipe.flip) if recipe.shift or recipe.flip else None,
            on_epoch=self._on_epoch,
            judge=lambda: self._judge(module),
            checkpoint=checkpoint,
            stop=self._stop,
            clock=self._clock,
        )
        assert history.best is not None
        return history.seconds, history.best

    def _lesson(self, module: nn.Module, candidate: Candidate, recipe: Recipe) -> tuple[nn.Module, Loss]:
        """`module` as it is trained, with its teacher if it has one, and the loss of what that returns."""
        if recipe.method == "finetune":
            return module, functional.cross_entropy
        loss = objective(recipe.weight, recipe.temperature, probabilities=self._probabilities)
        if not recipe.features:
            return Taught(module, self._teacher), loss
        points = stream_ends(self._network.source, candidate.keep)
        teacher = Teacher(Watched(self._network.module, points))
        return Taught(Watched(module, points), teacher), with_features(loss, recipe.features, points)

    def _key(self, candidate: Candidate, start: nn.Module) -> str:
        """Of all that determines the result."""
        digest = hashlib.sha256(f"{candidate.key} {weights_sha256(start)} {self._examples.sha256}".encode())
        digest.update(self._examples.inputs[:1].tobytes())  # the hash above is of the examples before normalisation
        return digest.hexdigest()[:16]


def is_trained(candidate: Candidate) -> bool:
    """Whether a candidate is one after training."""
    return any(name.startswith(PREFIX) for name in candidate.recipe)


def untrained(candidate: Candidate) -> Candidate:
    """The candidate that training starts from."""
    recipe = {name: value for name, value in candidate.recipe.items() if not name.startswith(PREFIX)}
    return dataclasses.replace(candidate, recipe=recipe)


def learning_rate(damage: float) -> float:
    """Peak learning rate for a network that lost this share of its accuracy: .004 if next to none, .02 from a tenth."""
    return float(0.004 * 5 ** min(1.0, max(0.0, damage) / 0.1))


def reestimate_batch_norm(module: nn.Module, inputs: NDArray[np.float32], *, batch: int = 128) -> None:
    """Replace the running statistics of every batch norm by those of `inputs`, in place, without gradients.

    Pruning changes what a layer receives, so the statistics of the original network no longer fit (He et al., "Channel
    pruning for accelerating very deep neural networks", 2017; Li et al., "EagleEye", 2020).

    Args:
        module: In eval mode before and after.
        inputs: Calibration images [N, ...].
        batch: Images per forward pass; statistics are averaged over passes with equal weight.
    """
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.inference_mode():
        for start in range(0, len(inputs), batch):
            chunk = torch.from_numpy(np.asarray(inputs[start : start + batch]))
            if len(chunk) > 1:
                module(chunk)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _written(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _forget(path: Path) -> None:
    """Delete the state of a training that is over."""
    for suffix in (FLOAT, ROUNDED):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _save(path: Path, found: Recovered) -> None:
    values = {
        "parameters": {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.parameters.items()},
        "ranges": {name: (interval.low, interval.high) for name, interval in found.ranges.items()},
        "numbers": (found.seconds, found.before, found.after),
    }
    with atomic_write(path) as stream:
        torch.save(values, stream)


def _load(path: Path) -> Recovered:
    values = torch.load(path, weights_only=True)
    seconds, before, after = values["numbers"]
    return Recovered(
        parameters={name: tensor.numpy() for name, tensor in values["parameters"].items()},
        ranges={name: TensorRange(low=low, high=high) for name, (low, high) in values["ranges"].items()},
        seconds=seconds,
        before=before,
        after=after,
    )
