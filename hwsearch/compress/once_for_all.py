"""One training run over many candidates at once, so that every one of them loses less when it is cut from the network.

In each step the whole network, the narrowest and two random candidates see the same batch, all taught by the original
(the sandwich rule of Yu and Huang, "Universally slimmable networks", 2019; Cai et al., "Once-for-all", 2020). They
share their weights: the channels a candidate lacks are masked where they are read, the branches it lacks where they
end, which computes what the smaller network would. Which channels stay follows from the order in which surgery removes
them, so that the channels of a narrow candidate are among those of every wider one.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.compress.distill import objective
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.config_recover import OnceForAllConfig, RecoverConfig
from hwsearch.model.data import DataSplit
from hwsearch.model.graph import Network, weights_sha256
from hwsearch.model.train import History, Loss, random_shift, train
from hwsearch.store import atomic_write, write_json
from hwsearch.types import PruneGroup, SourceModel

STEPS = 8
"""Widths of a group between none and all of its channels."""

DROPPED = 0.5
"""Probability with which the branches of the most damaged candidates are dropped."""

RANDOM = 2

STATISTICS = 4096
"""Training images for the batch norms of the whole network, which in training saw those of narrower ones as well."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What one candidate lacks: channels left of each prune group, and dropped branches."""

    keep: Mapping[str, int]
    dropped: tuple[str, ...] = ()


class Shared(nn.Module):
    """A network whose weights all candidates share.

    Args:
        network: The traced original, whose module is trained in place.
        reconstructor: Says in which order channels go.
    """

    def __init__(self, network: Network, reconstructor: Reconstructor) -> None:
        super().__init__()
        self.module = network.module
        self._source, self._norms = network.source, network.template.folded
        self._rank = {group.name: _ranks(group, reconstructor) for group in network.source.groups}
        self._layers: dict[str, Any] = dict(network.module.named_modules())

    def cut(self, x: Tensor, cut: Cut) -> Tensor:
        """What a candidate computes; batch norms see what it sees."""
        with self._masked(cut):
            outputs: Tensor = self.module(x)
        return outputs

    @contextmanager
    def _masked(self, cut: Cut) -> Iterator[None]:
        handles = [
            self._layers[name].register_forward_pre_hook(_masking(mask)) for name, mask in self._masks(cut).items()
        ]
        for branch in self._source.branches:
            if branch.name in cut.dropped:
                ends = (self._layers[self._norms.get(layer, layer)] for layer in branch.layers)
                handles += [end.register_forward_hook(lambda _, __, output: output * 0) for end in ends]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _masks(self, cut: Cut) -> dict[str, Tensor]:
        """Layer -> which of its inputs are there, for layers that read a narrowed group."""
        found: dict[str, Tensor] = {}
        for group in self._source.groups:
            left = self._rank[group.name] < cut.keep.get(group.name, group.channels)
            for axis in group.axes:
                layer = self._layers[axis.module]
                if axis.side == "in" and not left.all():
                    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
                    mask = found.setdefault(axis.module, torch.ones(inputs, dtype=torch.bool))
                    mask[axis.offset : axis.offset + len(left) * axis.repeat] = left.repeat_interleave(axis.repeat)
        return found


class Sandwich(nn.Module):
    """From a batch [N, ...] to the answers of several candidates and the teacher, [N, candidates + 1, ...].

    Args:
        shared: The weights.
        teacher: The original, left as it is.
        draw: The candidates of one step.
    """

    def __init__(self, shared: Shared, teacher: nn.Module, draw: Callable[[], list[Cut]]) -> None:
        super().__init__()
        self.shared, self._draw = shared, draw
        self._teacher = [copy.deepcopy(teacher).eval()]  # in a list, so that it is no part of what is trained

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        with torch.no_grad():
            known = self._teacher[0].to(x.device)(x)
        return torch.stack([*(self.shared.cut(x, cut) for cut in self._draw()), known], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schooling:
    """What a training run needs beside the network.

    Attributes:
        config: With a section `once_for_all`.
        examples: To train on; in none of the splits that judge.
        calibration: Images [N, ...] for the order of channels.
        probabilities: Whether outputs are logits of class probabilities.
        score: Of a whole network, for the record.
    """

    config: RecoverConfig
    examples: DataSplit
    calibration: NDArray[np.float32]
    probabilities: bool
    score: Callable[[nn.Module], float]


def once_for_all(
    network: Network,
    schooling: Schooling,
    folder: Path,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> nn.Module:
    """The network with weights that many candidates share, trained once and then read from its file.

    Args:
        network: The traced original; left unchanged.
        schooling: How, and with what.
        folder: Where trained weights are kept, under a name made of all that determines them, with what an interrupted
            run needs to go on. Beside each lies a JSON file that tells how it was trained, and the score of the whole
            network before and after.
        on_epoch: Told each epoch's number and mean loss.
        stop: Asked after every step; training is saved and given up when it says so.
        clock: Seconds.

    Raises:
        ModelError: training diverged.
        TrainingStoppedError: `stop` said so.
    """
    module, path = copy.deepcopy(network.module), folder / f"{_key(network, schooling)}.pt"
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
        return module
    fixed = not any(parameter.requires_grad for parameter in module.parameters())  # meant for inference alone
    if fixed:
        module.requires_grad_()
    shared = Shared(dataclasses.replace(network, module=module), Reconstructor(network, schooling.calibration))
    sandwich = Sandwich(shared, network.module, lambda: drawn(network.source, _section(schooling)))
    history = _fit(sandwich, schooling, path, on_epoch, stop, clock)
    if fixed:
        module.requires_grad_(requires_grad=False)
    reestimate_batch_norm(module, schooling.examples.inputs[:STATISTICS])
    scores = {"before": schooling.score(network.module), "after": schooling.score(module)}
    wanted = schooling.config.model_dump(mode="json")
    write_json(path.with_suffix(".json"), {"recover": wanted, "whole_network": scores, **asdict(history)})
    with atomic_write(path) as stream:
        torch.save(module.state_dict(), stream)
    path.with_suffix(".part").unlink(missing_ok=True)
    return module


def drawn(source: SourceModel, config: OnceForAllConfig) -> list[Cut]:
    """The whole network, its narrowest form, and random ones between, each with a severity of its own.

    Without it a random choice per group would never be near the whole network, where the best candidates are.
    """
    widths = {group.name: _widths(group, config) for group in source.groups}
    cuts = [Cut({}), Cut({name: offered[0] for name, offered in widths.items()})]
    for severity in torch.rand(RANDOM).tolist():
        keep = {name: _pick(offered) for name, offered in widths.items() if _happens(severity)}
        dropped = [branch.name for branch in source.branches if config.drop_branches and _happens(DROPPED * severity)]
        cuts.append(Cut(keep, tuple(dropped)))
    return cuts


def sandwich_loss(taught: Loss) -> Loss:
    """The mean of a loss for students and teachers, over the answers of `Sandwich`."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        *students, teacher = outputs.unbind(1)
        return torch.stack([taught(torch.stack((s, teacher), dim=1), targets) for s in students]).mean()

    return loss


def _fit(
    sandwich: Sandwich,
    schooling: Schooling,
    path: Path,
    on_epoch: Callable[[int, float], None] | None,
    stop: Callable[[], bool],
    clock: Callable[[], float],
) -> History:
    config, wanted = schooling.config, _section(schooling)
    taught = objective(config.weight, config.temperature, probabilities=schooling.probabilities)
    return train(
        sandwich,
        schooling.examples.inputs,
        schooling.examples.targets,
        minutes=wanted.minutes,
        lr=wanted.lr,
        batch=config.batch,
        weight_decay=config.weight_decay,
        seed=config.seed,
        loss=sandwich_loss(taught),
        augment=random_shift(config.shift, flip=config.flip) if config.shift or config.flip else None,
        on_epoch=on_epoch,
        checkpoint=path.with_suffix(".part"),
        stop=stop,
        clock=clock,
    )


def _section(schooling: Schooling) -> OnceForAllConfig:
    assert schooling.config.once_for_all is not None
    return schooling.config.once_for_all


def _ranks(group: PruneGroup, reconstructor: Reconstructor) -> Tensor:
    """Position of each channel when the last to go comes first."""
    left = [reconstructor.select({group.name: count})[group.name] for count in range(1, group.channels + 1)]
    found = torch.zeros(group.channels, dtype=torch.long)
    for kept in reversed(left):
        found[torch.from_numpy(kept)] = len(kept) - 1
    return found


def _widths(group: PruneGroup, config: OnceForAllConfig) -> list[int]:
    """Channel counts trained for, ascending, all of them left out."""
    counts = {max(1, round(group.channels * step / STEPS)) for step in range(1, STEPS)}
    return sorted(n for n in counts if n >= config.min_keep * group.channels) or [group.channels]


def _pick(widths: list[int]) -> int:
    return widths[int(torch.randint(len(widths), ()))]


def _happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _masking(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """A hook that puts zeros in the place of the channels a layer reads and that are not there."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (x,) = inputs
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (x.dim() - 2))
        return x * mask.to(x.device).view(shape)

    return hook


def _key(network: Network, schooling: Schooling) -> str:
    digest = hashlib.sha256(weights_sha256(network.module).encode())
    digest.update(json.dumps(schooling.config.model_dump(mode="json"), sort_keys=True).encode())
    for images in (schooling.examples.inputs[:1], schooling.calibration):
        digest.update(images.tobytes())  # after normalisation, unlike the hash below
    digest.update(schooling.examples.sha256.encode())
    return digest.hexdigest()[:12]
