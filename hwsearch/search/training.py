"""Trained forms of a study's candidates: data, score and starting point brought together for `compress.recover`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import nn

from hwsearch.compress.materialize import materialize
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import Observe, Recovered, Recovery
from hwsearch.compress.stitch import parameters_of
from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError, DataError
from hwsearch.model.data import Splits
from hwsearch.model.graph import Network
from hwsearch.model.metric import Metric
from hwsearch.model.outputs import outputs_of
from hwsearch.search.judge import Judge, batch_size
from hwsearch.types import Candidate


class Trainer:
    """Trains candidates of one network, on examples that no split holds.

    Args:
        network: The traced original.
        splits, metric: What it is judged by.
        config: The study.
        reconstructor: Repairs what is to be trained.
        judge: Of the study.
        folder: Where trained weights, and the state of interrupted training, are kept.
        stop: Asked after every step of training.
        on_epoch: Told each epoch's number and mean loss.
    """

    def __init__(
        self,
        network: Network,
        splits: Splits,
        metric: Metric,
        config: StudyConfig,
        reconstructor: Reconstructor,
        judge: Judge,
        folder: Path,
        *,
        stop: Callable[[], bool],
        on_epoch: Callable[[int, float], None],
    ) -> None:
        self._network, self._splits, self._metric = network, splits, metric
        self._config, self._reconstructor = config, reconstructor
        self._judge, self._folder, self._stop, self._on_epoch = judge, folder, stop, on_epoch

    def recovered(self, candidate: Candidate, observe: Observe) -> Recovered:
        """The candidate trained by its recipe, or read from its file; see `Recovery.recovered`."""
        network, calibration = self._network, self._splits.calibrate.inputs
        parameters = parameters_of(
            network, candidate, self._reconstructor, calibration=calibration, repair=self._config.recover.repair
        )
        kept = self._reconstructor.select(candidate.keep)
        return self._recovery.recovered(
            candidate, materialize(network, candidate, parameters, kept, calibration), observe
        )

    @cached_property
    def _recovery(self) -> Recovery:
        examples = self._splits.train
        assert examples is not None  # the study was checked
        return Recovery(
            self._network,
            examples,
            judge=self._score,
            probabilities=self._judge.probabilities,
            folder=self._folder,
            stop=self._stop,
            on_epoch=self._on_epoch,
        )

    def _score(self, module: nn.Module) -> float:
        metric, data = self._metric, self._splits.search
        value = metric(outputs_of(module, data.inputs, batch=batch_size(data.inputs)), data.targets)
        return value if metric.higher_is_better else -value


def check_trainable(config: StudyConfig, splits: Splits, metric: Metric) -> None:
    """Refuse a study that trains without examples or labels to train with.

    Raises:
        DataError, ConfigError: says what is missing.
    """
    method = config.recover.method
    if method == "none":
        return
    if splits.rest is None:
        raise DataError(
            f"`recover: {{method: {method}}}` trains, and the study's data have no training examples",
            hint="give train and test pools, or `train` beside calibrate, search and report",
        )
    if method == "finetune" and metric.name != "top1":
        raise ConfigError(
            "`finetune` learns from class labels, and the study's metric is not top1",
            where="recover.method = finetune",
            allowed="distill, which learns from the original network, or none",
        )
