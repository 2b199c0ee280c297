"""Where the latency of a candidate comes from: the device, a table, or whichever is needed.

A table answers in microseconds; the device is asked where the answer matters. ``auto`` measures baselines and every
candidate that the table cannot rule out of the front, and lets the table learn from each measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hwsearch.backends.timing import between_campaigns
from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError
from hwsearch.latency.build import target_device
from hwsearch.latency.files import Manifest
from hwsearch.latency.predictor import Predictor
from hwsearch.latency.roofline import roofline_table
from hwsearch.latency.table import LatencyTable, table_folder
from hwsearch.model.graph import Network
from hwsearch.search.front import costs_of
from hwsearch.search.run import LATENCY_FILE
from hwsearch.space.target import skipped_patterns
from hwsearch.store import write_json
from hwsearch.types import Accuracy, Artifact, Candidate, Latency, SearchSpace, Success, Target, Trial

Models = Mapping[str, tuple[Artifact, Candidate]]
Measure = Callable[[Models], dict[str, Latency]]

Z95 = 1.96


@dataclass(slots=True)
class LatencySource:
    """Answers for one target.

    Attributes:
        measure: Measures models together on the device.
        predictor: The table, or None to measure everything.
        label: What a prediction is called in results: ``table`` or ``modelled``.
        always_predict: Never measure while searching.
        device_present: False for a device that only a table describes: finalists are predicted too.
        reason: Why there is no table, or which one it is, for people.
    """

    measure: Measure
    batch: int
    predictor: Predictor | None = None
    label: str = "table"
    always_predict: bool = False
    device_present: bool = True
    reason: str = ""
    _rivals: list[tuple[float, float]] = field(default_factory=list)
    _floor_ms: float | None = None

    def __call__(self, candidate: Candidate, artifact: Artifact, accuracy: Accuracy, *, baseline: bool) -> Latency:
        """Latency of one candidate of the search.

        Measurements of different campaigns are brought to one scale through the reference model they all contain.
        """
        predicted = self._predicted(candidate)
        if predicted is not None and not self._worth_measuring(predicted, accuracy, baseline):
            return predicted
        found = self.measure({candidate.key: (artifact, candidate)})[candidate.key]
        return found if self._floor_ms is None else between_campaigns(found, self._floor_ms)

    def together(self, models: Models) -> dict[str, Latency]:
        """Latency of the finalists, measured in turns; predicted only where there is no device to measure on."""
        if self.device_present:
            return self.measure(models)
        return {key: found for key, (_, c) in models.items() if (found := self._predicted(c)) is not None}

    @property
    def explanation(self) -> str:
        """Where latencies come from and why, in words."""
        if self.predictor is None:
            return f"every model is measured: {self.reason}"
        alone = self.always_predict or not self.device_present
        return f"the latency table {'alone' if alone else 'decides which models are measured'}: {self.reason}"

    def remember(self, trial: Trial) -> None:
        """Learn from a finished evaluation."""
        if isinstance(trial.outcome, Success):
            if self._floor_ms is None and trial.baseline is not None:
                self._floor_ms = trial.outcome.latency.best_ms
            self._rivals.append(costs_of(trial.outcome.accuracy, trial.outcome.latency))
            if self.predictor is not None and trial.outcome.latency.source == "measured":
                with suppress(ConfigError):  # the table lacks an entry, so it has nothing to correct
                    self.predictor.learn(trial.candidate, trial.outcome.latency.best_ms)

    def _predicted(self, candidate: Candidate) -> Latency | None:
        """What the table says; None without one, and where it lacks an entry but the device can be asked."""
        if self.predictor is None:
            return None
        try:
            latency, sigma = self.predictor(candidate)
        except ConfigError:
            if self.always_predict or not self.device_present:
                raise
            return None
        return Latency(
            best_ms=latency,
            median_ms=None,
            p90_ms=None,
            p99_ms=None,
            ci95_ms=(max(0.0, latency - Z95 * sigma), latency + Z95 * sigma),
            rounds=0,
            samples=0,
            batch=self.batch,
            source=self.label,
            sigma_ms=sigma,
        )

    def rules_out(self, candidate: Candidate, accuracy: Accuracy) -> bool:
        """Whether a candidate with this accuracy is off the front already, as far as the table knows its latency."""
        predicted = self._predicted(candidate)
        return predicted is not None and self._beaten(predicted, accuracy)

    def _worth_measuring(self, predicted: Latency, accuracy: Accuracy, baseline: bool) -> bool:
        if not self.device_present or self.always_predict:
            return False
        return baseline or not self._beaten(predicted, accuracy)

    def _beaten(self, predicted: Latency, accuracy: Accuracy) -> bool:
        """Whether an earlier model beats it, were it as fast and as accurate as it may be."""
        cost, _ = costs_of(accuracy, predicted)
        spread = 0.0 if accuracy.ci95 is None else (accuracy.ci95[1] - accuracy.ci95[0]) / 2
        hopeful = (cost - spread, predicted.ci95_ms[0])
        return any(rival[0] <= hopeful[0] and rival[1] <= hopeful[1] for rival in self._rivals)


def latency_source(network: Network, target: Target, config: StudyConfig, measure: Measure) -> LatencySource:
    """What answers for `target` as the study asks: ``latency: measure | table | auto``.

    Raises:
        ConfigError: ``table`` was asked for, or the target is nothing but a table, and the table cannot be used.
    """
    only_table = target.backend == "table"
    skipped = [name for name in skipped_patterns(target, target_device(target).isa) if _wanted(name, config)]
    if skipped and config.latency == "auto" and not only_table:
        reason = f"tables know nothing of {', '.join(skipped)}; `space.sparsity: []` leaves it out"
        return LatencySource(measure=measure, batch=target.batch, reason=reason)
    if config.latency == "measure" and not only_table:
        return LatencySource(measure=measure, batch=target.batch, reason="the study asks for measurements")
    try:
        table = LatencyTable.open(table_path(target, config), target_device(target))
        predictor = table.predictor(network.source, target, network.template)
    except ConfigError as error:
        if config.latency == "table" or only_table:
            raise
        return LatencySource(measure=measure, batch=target.batch, reason=error.message)
    return LatencySource(
        measure=measure,
        batch=target.batch,
        predictor=predictor,
        label="modelled" if table.manifest.source == "modelled" else "table",
        always_predict=config.latency == "table",
        device_present=not only_table,
        reason=f"{table.folder}, {_quality(table.manifest)}",
    )


def record_explanation(source: LatencySource, folder: Path) -> str:
    """Keep in the run folder where its latencies come from; the same in words."""
    write_json(folder / LATENCY_FILE, {"explanation": source.explanation})
    return source.explanation


def _wanted(pattern: str, config: StudyConfig) -> bool:
    return config.space.sparsity is None or pattern in config.space.sparsity


def _quality(manifest: Manifest) -> str:
    if manifest.check is None:
        return f"{manifest.source}, not checked"
    return f"mean error {manifest.check.mape_pct:.1f} % on {manifest.check.models} models"


def compute_table(network: Network, space: SearchSpace, target: Target, config: StudyConfig) -> None:
    """Compute the table of a target that is described by a roofline, where the study will look for it."""
    if target.roofline is not None:
        roofline_table(network, space, target, table_path(target, config))


def table_path(target: Target, config: StudyConfig) -> Path:
    """Folder of the table a study uses: the target's own, or the one built for the study on this device."""
    if target.table is not None:
        return Path(target.table)
    return table_folder(target_device(target), config.name, root=Path(config.tables))
