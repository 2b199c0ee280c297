"""One candidate in, one result out: the only file that sees compression and backends together.

    stitch -> observe ranges -> lower and build -> predict the search split -> inspect -> measure

Everything that touches a runtime happens in child processes: a long-lived one that builds and predicts, and a fresh,
pinned one for each latency campaign. What they cannot do becomes an `EvaluationError`.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions
from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import Worker
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.recover import is_trained
from hwsearch.compress.stitch import bind, stitch
from hwsearch.config import StudyConfig
from hwsearch.errors import EvaluationError, HwSearchError
from hwsearch.model.data import Splits
from hwsearch.model.divergence import Divergence
from hwsearch.model.graph import Network
from hwsearch.model.metric import Metric
from hwsearch.search.builder import Builder
from hwsearch.search.energy import energy_source
from hwsearch.search.judge import Judge
from hwsearch.search.latency import latency_source
from hwsearch.search.run_options import latency_options
from hwsearch.search.stopwatch import Stopwatch
from hwsearch.search.training import Trainer
from hwsearch.store import atomic_write
from hwsearch.types import (
    Accuracy,
    Artifact,
    Candidate,
    CompressedModel,
    Energy,
    Failure,
    Latency,
    Split,
    Success,
    Target,
    TensorRange,
    Trial,
)
from hwsearch.types.built import trained_folder, trained_weights

CAMPAIGN_SLACK = 4.0
SCREEN_IMAGES = 512  # of the search split, after which a hopeless candidate is given up
QUICK_REFIT_IMAGES = 128
"""Half of the usual ones: single changes of ResNet-20 keep their order (Spearman .99) at half the time."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compressed and how it is judged: the live objects behind a study."""

    network: Network
    splits: Splits
    metric: Metric


class Evaluator:
    """Evaluates candidates of one subject on one target. A context manager: leaving it ends the child process.

    Args:
        subject: Network, data and metric.
        target: Device to build for and measure on.
        config: The study.
        folder: The run folder; arrays, artifacts and logs go below ``work/``, repaired pieces of the network beside it.
        stop: Asked while a candidate is trained; ends that.
        on_epoch: Told each epoch of it and its mean loss.
    """

    def __init__(
        self,
        subject: Subject,
        target: Target,
        config: StudyConfig,
        folder: Path,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[int, float], None] = lambda _epoch, _loss: None,
    ) -> None:
        self.subject, self.target, self.config, self.folder = subject, target, config, folder
        self.work = folder / "work"
        self.reference: tuple[Artifact, RunOptions] | None = None
        self._builder = Builder(subject.splits, target, config, folder)
        self.latency = latency_source(subject.network, target, config, self.measure)
        self._energy = energy_source(subject.network, target, config, self.work / "logs")
        self.reconstructor = Reconstructor(
            subject.network,
            subject.splits.calibrate.inputs,
            settings=Settings(selection=config.recover.selection),
            folder=folder.parent / "pieces",
        )
        self.judge = Judge(subject.network, subject.splits, subject.metric, self.work)
        self.trainer = Trainer(
            subject.network, subject.splits, subject.metric, config, self.reconstructor, self.judge,
            trained_folder(folder), stop=stop, on_epoch=on_epoch,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._builder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._builder.__exit__(kind, error, trace)

    def run_options(self, float_precision: str) -> RunOptions:
        """How latency is measured: the target's threads and batch, pinned to the machine's last cores."""
        return latency_options(self.target, float_precision)

    def evaluate(self, candidate: Candidate, *, baseline: bool = False) -> tuple[Success | Failure, dict[str, float]]:
        """The result of one candidate and the seconds per stage. Anything but a broken study is a `Failure`."""
        watch = Stopwatch()
        try:
            return self._evaluate(candidate, watch, baseline), watch.seconds
        except EvaluationError as error:
            failure = Failure(
                stage=error.stage, error=error.kind, message=error.message, hint=error.hint, log=error.log[-4000:]
            )
        except HwSearchError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one candidate breaks must not end the search
            failure = Failure(stage=watch.stage, error=type(error).__name__, message=str(error).split("\n", 1)[0][:500])
        return failure, watch.seconds

    def accuracy(self, artifact: Artifact, candidate: Candidate, split: Split) -> Accuracy:
        """The study's metric of a built artifact on one split, computed from the backend's own outputs."""
        return self.judge.accuracy(self._builder.outputs(artifact, candidate, split), split)

    def divergence(self, candidate: Candidate, images: int) -> Divergence:
        """How far a candidate's outputs are from the original's on the first `images` examples of the search split.

        It is repaired, on fewer images, and built as for an evaluation, then judged and not kept.

        Raises:
            EvaluationError: a stage failed.
        """
        return self.judge.divergence(self._tried(candidate, images, QUICK_REFIT_IMAGES))

    def score(self, candidate: Candidate) -> Accuracy:
        """The study's metric of a candidate on the search split; it is built and judged, not measured, and not kept.

        Raises:
            EvaluationError: a stage failed.
        """
        return self.judge.accuracy(self._tried(candidate, len(self.subject.splits.search), None), "search")

    def _tried(self, candidate: Candidate, images: int, refit_images: int | None) -> NDArray[np.float32]:
        """Outputs of a candidate on the first examples of the search split."""
        folder = self.work / "probe"
        artifact = self._builder.build(self._stitch(candidate, refit_images), candidate, folder)
        outputs = self._builder.outputs(artifact, candidate, "search", 0, images)
        shutil.rmtree(folder)
        return outputs

    def energy(self, candidate: Candidate, artifact: Artifact) -> Energy | None:
        """What one example takes; None unless the study asks for it."""
        return self._energy(candidate, self.located(artifact))

    def remember(self, trial: Trial) -> None:
        """Take a finished evaluation into account: the widest baseline becomes the reference of later measurements."""
        self.latency.remember(trial)
        if self.reference is None and trial.baseline is not None and isinstance(trial.outcome, Success):
            self.reference = (trial.outcome.artifact, self.run_options(trial.candidate.float_precision))

    def measure(self, models: Mapping[str, tuple[Artifact, Candidate]]) -> dict[str, Latency]:
        """Latency of each model, interleaved with the reference (once it is known) in a fresh child process."""
        artifacts = {
            name: (self.located(artifact), self.run_options(candidate.float_precision))
            for name, (artifact, candidate) in models.items()
        }
        if self.reference is not None:
            artifacts["reference"] = (self.located(self.reference[0]), self.reference[1])
        settings = self.config.measure
        policy = TimingPolicy(rounds=settings.rounds, min_rounds=settings.min_rounds, seconds=settings.seconds)
        with Worker(
            self.target.backend,
            self.run_options("fp32"),
            memory_bytes=self._memory_bytes,
            log=self.work / "logs" / "latency.log",
            policy=policy,
        ) as worker:
            found = worker.measure(
                artifacts,
                reference="reference" if self.reference else None,
                timeout_s=self._timeout + CAMPAIGN_SLACK * policy.seconds * len(artifacts),
            )
        return {name: found[name] for name in models}

    def rebuilt(self, artifact: Artifact, candidate: Candidate) -> tuple[Artifact, Candidate] | None:
        """The model built once more, where builds of one model can differ, as engines do; None elsewhere."""
        second = self._builder.rebuilt(artifact, candidate)
        return None if second is None else (second, candidate)

    def located(self, artifact: Artifact) -> Artifact:
        """The artifact with paths that can be opened; records hold them relative to the run folder."""
        return self._builder.located(artifact)

    def _evaluate(self, candidate: Candidate, watch: Stopwatch, baseline: bool) -> Success:
        folder = self.work / "artifacts" / candidate.key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        compressed, learned = self._compressed(candidate, watch)
        with watch.on("build"):
            artifact = self._builder.build(compressed, candidate, folder, learned)
        with watch.on("accuracy"):
            accuracy = self._screened(artifact, candidate, baseline)
        with watch.on("inspect"):
            layers = self._builder.layers(artifact, candidate, compressed.precision)
        with watch.on("latency"):
            latency = self.latency(candidate, artifact, accuracy, baseline=baseline)
        energy = None
        if self.config.wants_energy:
            with watch.on("energy"):
                energy = self.energy(candidate, artifact)
        Path(compressed.path).unlink()
        return Success(
            accuracy=accuracy,
            latency=latency,
            artifact=artifact,
            layers=layers,
            params=compressed.params,
            nonzero=compressed.nonzero,
            macs=compressed.macs,
            packed_bytes=packed_bytes(self.located(artifact)) if self.config.space.sparsity else None,
            energy=energy,
        )

    def _screened(self, artifact: Artifact, candidate: Candidate, baseline: bool) -> Accuracy:
        """Accuracy on the search split; on its first examples alone where those rule the candidate out of the front."""
        inputs = self.subject.splits.search.inputs
        if baseline or is_trained(candidate) or len(inputs) < 2 * SCREEN_IMAGES:
            return self.accuracy(artifact, candidate, "search")
        outputs = self._builder.outputs(artifact, candidate, "search", 0, SCREEN_IMAGES)
        first = self.judge.accuracy(outputs, "search")
        if self.latency.rules_out(candidate, first):
            return first
        rest = self._builder.outputs(artifact, candidate, "search", SCREEN_IMAGES)
        return self.judge.accuracy(np.concatenate([outputs, rest]), "search")

    def _compressed(self, candidate: Candidate, watch: Stopwatch) -> tuple[CompressedModel, Mapping[str, TensorRange]]:
        """The candidate with its weights, and ranges that were learned with them."""
        if not is_trained(candidate):
            with watch.on("stitch"):
                return self._stitch(candidate), {}
        network, path = self.subject.network, self.work / "float.onnx"
        with watch.on("recover"):
            found = self.trainer.recovered(
                candidate,
                lambda parameters: self._builder.ranges(bind(network, candidate, parameters, path), candidate),
            )
        watch.seconds["recover"] = found.seconds  # of earlier processes as well
        with atomic_write(trained_weights(self.folder, candidate.key)) as stream:
            np.savez(stream, **found.parameters)  # type: ignore[arg-type]
        return bind(network, candidate, found.parameters, path), found.ranges

    def _stitch(self, candidate: Candidate, refit_images: int | None = None) -> CompressedModel:
        return stitch(
            self.subject.network,
            candidate,
            self.work / "float.onnx",
            calibration=self.subject.splits.calibrate.inputs,
            repair=self.config.recover.repair,
            reconstructor=self.reconstructor,
            refit_images=refit_images,
        )

    @property
    def _timeout(self) -> float:
        return self.config.search.timeout_s

    @property
    def _memory_bytes(self) -> int:
        return self.config.search.memory_mb * 2**20


def packed_bytes(artifact: Artifact) -> int:
    """Size of an artifact's files, each deflated as a zip file or an application package holds it."""
    return sum(len(zlib.compress(Path(file).read_bytes())) for file in artifact.files)
