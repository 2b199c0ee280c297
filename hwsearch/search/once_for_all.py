"""The training run before a search, if the study asks for one: a study's data, score and network brought together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from hwsearch.compress.once_for_all import Schooling, once_for_all
from hwsearch.config import StudyConfig
from hwsearch.errors import DataError
from hwsearch.model.data import Splits
from hwsearch.model.graph import Network, trace
from hwsearch.model.metric import Metric
from hwsearch.model.outputs import outputs_of
from hwsearch.search.judge import batch_size


def schooled(
    network: Network,
    splits: Splits,
    metric: Metric,
    config: StudyConfig,
    folder: Path,
    *,
    on_epoch: Callable[[int, float], None] | None,
) -> Network:
    """The network as `recover.once_for_all` of the study makes it; as it is if there is no such section.

    Raises:
        DataError: there are no training examples.
        ModelError: training diverged.
    """
    if config.recover.once_for_all is None:
        return network
    if splits.train is None:
        raise DataError(
            "`recover.once_for_all` trains, and the study's data have no training examples",
            hint="give train and test pools, or `train` beside calibrate, search and report",
        )

    def score(module: nn.Module) -> float:
        data = splits.search
        return metric(outputs_of(module, data.inputs, batch=batch_size(data.inputs)), data.targets)

    schooling = Schooling(
        config=config.recover,
        examples=splits.train,
        calibration=splits.calibrate.inputs,
        probabilities=metric.name == "top1",
        score=score,
    )
    module = once_for_all(network, schooling, folder, on_epoch=on_epoch)
    return trace(module, splits.calibrate.inputs[:2], name=network.source.name)
