"""A network trained in a form with more branches and merged again; trained once, then read from its file."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from hwsearch.config_reparam import ReparamConfig
from hwsearch.errors import DataError
from hwsearch.model.data import DataSplit
from hwsearch.model.distill import Taught, distillation
from hwsearch.model.graph import weights_sha256
from hwsearch.model.train import History, random_shift, train
from hwsearch.reparam.expand import expand
from hwsearch.reparam.merge import check_same, merge
from hwsearch.store import atomic_write, write_json

COMPARED = 8
"""Examples on which the merged network is compared with the one that was trained."""


def retrained(
    model: nn.Module,
    config: ReparamConfig,
    examples: DataSplit | None,
    folder: Path,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """`model` expanded, trained and merged as `config` says; it has the layers and names of `model`.

    Args:
        model: Left as it is; the teacher where `config` distils.
        config: Kind of blocks, and how they are trained.
        examples: Training examples with class labels.
        folder: Where trained weights are kept, under a name made of all that determines them: `model`, `config` and
            `examples`. Beside each lies a JSON file that tells how it was trained. A training that was killed goes on
            from a third.
        on_epoch: Called with the epoch's number, from 1, and its mean loss.

    Raises:
        ConfigError: a kind or option does not fit the network.
        DataError: there are no training examples.
        ModelError: training diverged, or merging changed the outputs.
    """
    if examples is None:
        raise DataError(
            "`reparam` trains, and the study's data have no training examples",
            hint="give train and test pools, or one set, instead of ready splits",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        expanded = expand(model, config.kind, layers=config.layers, fresh=config.fresh, **config.options)
    path = folder / f"{_key(model, config, examples)}.pt"
    if path.exists():
        merged = merge(expanded)
        merged.load_state_dict(torch.load(path, weights_only=True))
        return merged
    unfinished = path.with_suffix(".part")
    history = _fit(expanded, model, config, examples, unfinished, on_epoch)
    merged = merge(expanded)
    check_same(expanded, merged, torch.from_numpy(examples.inputs[:COMPARED]))
    write_json(path.with_suffix(".json"), {"reparam": config.model_dump(mode="json"), **asdict(history)})
    with atomic_write(path) as stream:
        torch.save(merged.state_dict(), stream)
    unfinished.unlink()
    return merged


def _fit(
    expanded: nn.Module,
    teacher: nn.Module,
    config: ReparamConfig,
    examples: DataSplit,
    checkpoint: Path,
    on_epoch: Callable[[int, float], None] | None,
) -> History:
    return train(
        Taught(expanded, copy.deepcopy(teacher)) if config.distill else expanded,
        examples.inputs,
        examples.targets,
        epochs=config.epochs,
        lr=config.lr,
        batch=config.batch,
        weight_decay=config.weight_decay,
        seed=config.seed,
        loss=distillation(config.distill, config.temperature) if config.distill else functional.cross_entropy,
        augment=random_shift(config.shift, flip=config.flip) if config.shift or config.flip else None,
        on_epoch=on_epoch,
        checkpoint=checkpoint,
    )


def _key(model: nn.Module, config: ReparamConfig, examples: DataSplit) -> str:
    digest = hashlib.sha256(weights_sha256(model).encode())
    settings = config.model_dump(mode="json", exclude={"guard"})
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(examples.sha256.encode())
    digest.update(examples.inputs[:1].tobytes())  # the hash above is of the examples before normalisation
    return digest.hexdigest()[:12]
