"""From a study file to the live objects a search needs, checked before anything is evaluated."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from torch import nn

from hwsearch.backends.base import get_backend
from hwsearch.config import StudyConfig
from hwsearch.errors import BackendUnavailableError, ConfigError
from hwsearch.latency.build import target_device
from hwsearch.model.data import Splits, check_inputs, check_labels, load_splits
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.model.metric import Metric, load_metric
from hwsearch.reparam.guard import bounded, inspect
from hwsearch.reparam.recipe import retrained
from hwsearch.search.energy import check_energy
from hwsearch.search.evaluate import Subject
from hwsearch.search.once_for_all import schooled
from hwsearch.search.run import Identity
from hwsearch.search.training import check_trainable
from hwsearch.space.profile import TABLE
from hwsearch.space.space import build_space, dimensions, log10_size
from hwsearch.space.target import load_target, skipped_patterns
from hwsearch.types import SearchSpace, Target, to_json

REPORTED = ("hwsearch", "torch", "onnx", "optuna", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a search of one target would do; the answer of ``--dry-run`` and ``check``."""

    target: str
    layers: int
    groups: int
    branches: int
    dimensions: int
    space_log10_size: float
    refused: tuple[str, ...]
    evaluations: int


def load_subject(
    config: StudyConfig,
    *,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    metric: Metric | None = None,
    trained: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Subject:
    """Model, data and metric of a study, loaded, traced and checked against each other.

    Args:
        config: The study.
        module: Replaces the network the study names.
        splits: Replace the data the study names.
        metric: Replaces the metric the study names.
        trained: Folder of trained weights; a study with `reparam` or `recover.once_for_all` trains into it, once. None:
            the network as it is, which has the same layers and shapes.
        on_epoch: Told each epoch of that training and its mean loss.

    Raises:
        ModelError, DataError, ConfigError: whatever is wrong with them.
    """
    splits = splits or load_splits(config.data, base_dir=config.base_dir)
    module = module or load_model(
        config.model, weights=_path(config.weights), model_args=config.model_args, base_dir=config.base_dir
    )
    if config.reparam is not None and trained is not None:
        module = retrained(module, config.reparam, splits.train, trained, on_epoch=on_epoch)
    metric = metric or load_metric(config.metric, config.direction, base_dir=config.base_dir)
    check_trainable(config, splits, metric)
    network = trace(module, np.asarray(splits.calibrate.inputs[:2]), name=config.model)
    if trained is not None:
        network = schooled(network, splits, metric, config, trained, on_epoch=on_epoch)
    check_inputs(splits, network.source.input_shape)
    if metric.name == "top1":
        check_labels(splits, network.source.output_shape[-1])
    return Subject(network=network, splits=splits, metric=metric)


def ready_target(name: str, config: StudyConfig) -> Target:
    """The target called `name` with the study's threads and batch; its backend is installed and works.

    Raises:
        BackendUnavailableError: says what is missing and how to get it; or nothing counts the energy asked for.
    """
    target = load_target(name, threads=config.threads, batch=config.batch)
    available = get_backend(target.backend).availability()
    if not available.ok:
        raise BackendUnavailableError(f"target `{name}` cannot run here: {available.problem}", hint=available.install)
    if target.backend == TABLE and target.table is None and target.roofline is None:
        raise ConfigError(
            f"target `{name}` is known by a latency table alone, and names none",
            hint=f"hwsearch table import CSV FOLDER --target {name} --origin TEXT; then `table: FOLDER` in its file",
        )
    if for_target(config, target).wants_energy:
        check_energy(target)
    return target


def for_target(config: StudyConfig, target: Target) -> StudyConfig:
    """The study as it is on one target: what it leaves open is as the target says."""
    own = {name: value for name, value in to_json(target.limits).items() if value is not None}
    left_open = {name: value for name, value in own.items() if getattr(config.limits, name) is None}
    limits = config.limits.model_copy(update=left_open)
    quantize = config.quantize
    if target.ranges is not None and "ranges" not in quantize.model_fields_set:
        quantize = quantize.model_copy(update={"ranges": target.ranges.method})
    return config.model_copy(update={"limits": limits, "quantize": quantize})


def space_for(subject: Subject, target: Target, config: StudyConfig) -> SearchSpace:
    """What may be chosen for this subject on this target's chip.

    Raises:
        ConfigError: the study asks for what gains nothing on this target.
    """
    _check_zeros(target, config)
    space = build_space(subject.network.source, target, config.space, target_device(target).isa)
    if config.reparam is None or not config.reparam.guard:
        return space
    return bounded(space, inspect(subject.network))


def _check_zeros(target: Target, config: StudyConfig) -> None:
    """Refuse patterns of zeros that make nothing faster where size does not count."""
    idle = sorted(set(config.space.sparsity or ()) - set(skipped_patterns(target, target_device(target).isa)))
    if idle and "size" not in config.objectives and config.limits.size_mb is None:
        raise ConfigError(
            f"zeros make nothing faster on `{target.name}`, and size does not count",
            where=f"space.sparsity = {idle}",
            hint="add `size` to `objectives`, set `limits.size_mb`, or leave `space.sparsity` out",
        )


def plan_study(config: StudyConfig) -> list[Plan]:
    """One plan per target of the study; nothing is evaluated or written."""
    ready = [ready_target(name, config) for name in config.targets]
    subject = load_subject(config)
    return [_plan(subject, target, config) for target in ready]


def identity(subject: Subject, target: Target, space: SearchSpace, config: StudyConfig) -> Identity:
    """What this search is, for its run folder."""
    splits = subject.splits
    return Identity(
        source=subject.network.source,
        target=target,
        space=space,
        device=target_device(target),
        metric=subject.metric.name,
        data={split.name: split.sha256 for split in (splits.calibrate, splits.search, splits.report)},
        objectives=config.objectives,
    )


def versions() -> dict[str, str]:
    """Versions of Python, the system and the packages that shape results."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"cpus": str(os.cpu_count())}


def _plan(subject: Subject, target: Target, config: StudyConfig) -> Plan:
    space = space_for(subject, target, config)
    return Plan(
        target=target.name,
        layers=len(subject.network.source.layers),
        groups=len(space.widths),
        branches=len(space.droppable),
        dimensions=len(dimensions(space)),
        space_log10_size=log10_size(space),
        refused=space.refused,
        evaluations=config.search.evaluations,
    )


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
