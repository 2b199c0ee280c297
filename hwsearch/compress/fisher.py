"""How much single choices hurt, estimated from one pass of gradients: for networks too large to build every choice.

A small error e in what a layer writes moves the network's output distribution by ½ eᵀ Jᵀ F J e, with the Jacobian J
from there to the logits and their Fisher information F (after Theis et al., "Faster gaze prediction with dense networks
and Fisher pruning", 2018). For a random vector v of covariance F that is the mean of ½ (eᵀ Jᵀ v)², and Jᵀ v is one
backward pass, whatever the number of errors. The error is what is left of a choice after the cheapest repair:
compensated weights for lost channels, the best linear substitute for a dropped branch, rounding for a precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from hwsearch.compress.least_squares import Sums
from hwsearch.compress.select import damped
from hwsearch.compress.statistics import (
    Layer,
    gram,
    output_positions,
    output_rows,
    take_inputs,
    watch,
)
from hwsearch.types import PRECISIONS

CHUNK_IMAGES = 8  # whose activations are kept for the backward pass
PROJECTIONS = 4  # backward passes per image, of as many random vectors
RIDGE = 1e-2  # of the substitute for a branch, relative to the mean energy of its shortcut
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Error = Callable[[Tensor], Tensor]
"""From what a layer reads [groups, rows, columns + 1] to the error of its result [groups, rows, outputs]."""


def fisher_losses(
    module: nn.Module,
    errors: Mapping[str, Mapping[str, Error]],
    branches: Mapping[str, Sequence[str]],
    images: Tensor,
    *,
    probabilities: bool,
) -> dict[str, Tensor]:
    """Choice -> loss of each image [N]; errors of one choice in several layers count each for itself.

    Args:
        module: The original network, batch norm folded.
        errors: Layer -> choice -> error.
        branches: Last layer of a branch -> choices that drop it.
        images: [N, ...].
        probabilities: Whether the outputs are logits [N, classes] and the loss is KL divergence; relative squared error
            if not.
    """
    sweep = _Sweep(module, images)
    scores = _Scores(sweep, errors, branches, _substitutes(sweep, branches))
    energy = scores.collect(_of_probabilities if probabilities else torch.randn_like)
    scale = (0.5 if probabilities else 1 / energy) / PROJECTIONS
    return {choice: scale * torch.cat(parts) for choice, parts in scores.squares.items()}


def compensation_error(change: Tensor) -> Error:
    """The error of a layer whose weights and bias [groups, outputs, columns + 1] are changed by `change`.

    A layer of one group may leave that axis out.
    """
    return lambda rows: rows @ change.mT


def rounding_error(layer: Layer, precision: str) -> Error:
    """The error of a layer that multiplies rounded weights, with a scale per output channel, by rounded inputs."""
    groups = getattr(layer, "groups", 1)
    flat = layer.weight.flatten(1)
    spread = 2 * flat.abs().amax(dim=1, keepdim=True)
    exact, rounded = (
        w.reshape(groups, -1, w.shape[1]).transpose(1, 2) for w in (flat, _rounded(flat, precision, spread))
    )

    def error(rows: Tensor) -> Tensor:
        read = rows[..., :-1]
        result = _on_grid(read, precision) @ rounded
        return _on_grid(result, precision) - read @ exact

    return error


class _Sweep:
    """Passes over the images, a few at a time."""

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self._module, self._images = module, images

    def over(
        self,
        layers: Iterable[str],
        look: Callable[[str, Layer, Tensor, Tensor], None],
        join: Callable[[Tensor, Tensor], None],
        step: Callable[[Tensor], None],
    ) -> None:
        """Call `look` for each layer, `join` for each sum of two tensors and `step` for each chunk's output."""
        with watch(self._module, layers, look):
            for chunk in torch.split(self._images, CHUNK_IMAGES):
                with Sums(join):
                    output = self._module(chunk.detach().requires_grad_())
                step(output)


class _Scores:
    """Squares of what errors do to a random projection of the outputs.

    Attributes:
        squares: Choice -> one number per image, in parts; of several layers, their sum.
    """

    def __init__(
        self,
        sweep: _Sweep,
        errors: Mapping[str, Mapping[str, Error]],
        branches: Mapping[str, Sequence[str]],
        substitutes: Mapping[str, Tensor],
    ) -> None:
        self._sweep, self._errors, self._branches, self._substitutes = sweep, errors, branches, substitutes
        self._waiting = _Waiting()
        self._chunk: dict[str, Tensor] = {}
        self.squares: defaultdict[str, list[Tensor]] = defaultdict(list)

    def collect(self, cotangents: Callable[[Tensor], Tensor]) -> float:
        """Pass all images forward and back; the mean squared distance of an output from the mean output."""
        outputs = []

        def step(output: Tensor) -> None:
            for left in reversed(range(PROJECTIONS)):
                output.backward(cotangents(output.detach()), retain_graph=left > 0)  # type: ignore[no-untyped-call]
            outputs.append(output.detach().flatten(1))
            self._waiting.clear()
            for choice, values in self._chunk.items():
                self.squares[choice].append(values)
            self._chunk = {}

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._sweep.over({**self._errors, **self._branches}, self._look, self._join, step)
        whole = torch.cat(outputs)
        return float((whole - whole.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-30))

    @torch.no_grad()
    def _look(self, name: str, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        positions = torch.arange(output_positions(layer, output)).expand(len(output), -1)
        rows = take_inputs(layer, inputs, positions)
        found = {choice: error(rows).movedim(0, 1).flatten(1) for choice, error in self._errors.get(name, {}).items()}
        self._when_gradient_comes(layer, output, found)
        if name in self._branches:
            self._waiting.add(name, layer, output)

    @torch.no_grad()
    def _join(self, one: Tensor, other: Tensor) -> None:
        for name, layer, output, shortcut in self._waiting.matched(one, other):
            branch, beside = (output_rows(layer, values).flatten(0, 1) for values in (output, shortcut))
            error = branch - _with_one(beside) @ self._substitutes[name]
            self._when_gradient_comes(layer, output, dict.fromkeys(self._branches[name], error))

    def _when_gradient_comes(self, layer: Layer, output: Tensor, errors: Mapping[str, Tensor]) -> None:
        def score(gradient: Tensor) -> None:
            taken = output_rows(layer, gradient)
            for choice, error in errors.items():
                square = (taken * error.view(taken.shape)).sum(dim=(1, 2)).square()
                self._chunk[choice] = square + self._chunk.get(choice, 0)

        output.register_hook(score)  # type: ignore[no-untyped-call]


class _Waiting:
    """Outputs of layers that may yet be added to something; holding them keeps their ids unique."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[str, Layer, Tensor]] = {}

    def add(self, name: str, layer: Layer, output: Tensor) -> None:
        self._found[id(output)] = name, layer, output

    def matched(self, one: Tensor, other: Tensor) -> Iterator[tuple[str, Layer, Tensor, Tensor]]:
        for output, shortcut in ((one, other), (other, one)):
            if id(output) in self._found:
                yield *self._found.pop(id(output)), shortcut

    def clear(self) -> None:
        self._found.clear()


def _substitutes(sweep: _Sweep, branches: Iterable[str]) -> dict[str, Tensor]:
    """Layer -> weights and bias [channels + 1, channels] that make its result out of the shortcut it is added to."""
    moments: dict[str, Tensor] = {}
    waiting = _Waiting()

    def look(name: str, layer: Layer, _: Tensor, output: Tensor) -> None:
        waiting.add(name, layer, output)

    def join(one: Tensor, other: Tensor) -> None:
        for name, layer, output, shortcut in waiting.matched(one, other):
            branch, beside = (output_rows(layer, values).flatten(0, 1) for values in (output, shortcut))
            rows = torch.cat([branch, _with_one(beside)], dim=1)
            moments[name] = gram(rows[None])[0] + moments.get(name, 0)

    with torch.no_grad():
        sweep.over(branches, look, join, lambda _: waiting.clear())
    return {name: _regressed(found) for name, found in moments.items()}


def _regressed(moments: Tensor) -> Tensor:
    """Weights of the last variables, of which there is one more, that come nearest to the first."""
    first = len(moments) // 2
    factor = torch.linalg.cholesky(damped(moments[first:, first:] / moments[-1, -1], RIDGE))
    return torch.cholesky_solve(moments[first:, :first] / moments[-1, -1], factor).float()


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _of_probabilities(logits: Tensor) -> Tensor:
    """Random vectors [N, classes] whose covariance is the Fisher information of the logits, diag(p) - p pᵀ."""
    p = logits.softmax(dim=1)
    noise = p.sqrt() * torch.randn_like(p)
    found: Tensor = noise - p * noise.sum(dim=1, keepdim=True)
    return found


def _on_grid(activations: Tensor, precision: str) -> Tensor:
    return _rounded(activations, precision, activations.amax() - activations.amin().clamp_max(0.0))


def _rounded(values: Tensor, precision: str, spread: Tensor) -> Tensor:
    """Values on the grid of a precision; an integer grid spans `spread`."""
    if not PRECISIONS[precision].integer:
        return values.to(FLOATS[precision]).to(values.dtype)
    step = spread.clamp_min(1e-12) / (2 ** PRECISIONS[precision].weight_bits - 1)
    found: Tensor = (values / step).round() * step
    return found
