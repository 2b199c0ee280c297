"""Adapted weights in an existing bundle: the same graph, channels and number formats, new numbers, one atomic step."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.adapt.files import FACTS, TENSORS, save_adapter
from hwsearch.adapt.insert import AdapterSpec, merge
from hwsearch.adapt.scenes import SceneData
from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.backends.environment import usable_cores
from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import Worker
from hwsearch.compress.quantize import bins_for, ranges
from hwsearch.compress.stitch import bind
from hwsearch.errors import BundleError, EvaluationError, HwSearchError
from hwsearch.export.card import card, requirements_txt
from hwsearch.export.deployed import Deployed
from hwsearch.export.formats import format_of, place_model
from hwsearch.export.manifest import FILE, Manifest, Update, located, write_manifest
from hwsearch.export.structure import structure
from hwsearch.export.verify import verify_bundle
from hwsearch.export.versions import next_version
from hwsearch.model.template import folded_parameters
from hwsearch.search.judge import batch_size
from hwsearch.store import sha256_file
from hwsearch.types import Accuracy, Artifact, TensorRange

TIMING = TimingPolicy(rounds=40, seconds=2.0)
MEASURE_TIMEOUT_S = 120.0
OWN_FILES = (FILE, "README.md", "samples.npz", "requirements.txt", TENSORS, FACTS)
"""Files of a bundle that an update writes anew; model files besides."""

Inputs = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """What was made of a bundle's network.

    Attributes:
        network: Adapted from `Deployed.base`, adapters in it or not.
        spec: Of its adapters; None if it has none.
        rungs: Names of the means that stayed.
        labels: Labelled examples used.
        seconds: Wall time.
    """

    network: Any
    spec: AdapterSpec | None
    rungs: tuple[str, ...]
    labels: int
    seconds: float


def update_bundle(
    deployed: Deployed,
    adaptation: Adaptation,
    data: SceneData,
    *,
    remember: bool = False,
    force: bool = False,
    timing: bool = True,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Update:
    """Put adapted weights into the bundle they were made for; what served before is kept as a version.

    Ranges of activations and scales of weights are calibrated again. The new folder is verified before it takes the
    old one's place; whatever goes wrong before that leaves the old one as it was.

    Args:
        deployed: The bundle.
        adaptation: The network.
        data: The scene; ranges are calibrated on what adaptation saw, accuracy is scored on the rest.
        remember: Whether source images take part in the calibration of ranges, for networks that serve both.
        force: Update even if accuracy in the scene does not rise.
        timing: Whether old and new are measured in turns.
        on_stage: Told what is being done.

    Raises:
        BundleError: the new model has another structure, or fails verification.
        HwSearchError: it is not better in the scene.
    """
    started = time.perf_counter()
    with Runtime(deployed) as runtime:
        on_stage("build")
        artifact = runtime.build(adaptation.network, _calibration(deployed, data, remember=remember))
        _check_structure(runtime.old, artifact)
        on_stage("score")
        scene, source = runtime.scores(artifact, data), runtime.source_scores(artifact)
        if not force:
            _check_better(*scene)
        if timing:
            on_stage("measure")
        ratio = runtime.latency_ratio(artifact) if timing else None
        update = Update(
            version=len(deployed.manifest.updates) + 1,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            previous_sha256=deployed.manifest.sha256,
            scene=data.name,
            rungs=adaptation.rungs,
            labels=adaptation.labels,
            before=scene[0],
            after=scene[1],
            source_before=source[0],
            source_after=source[1],
            latency_ratio=ratio,
            seconds=adaptation.seconds + time.perf_counter() - started,
        )
        on_stage("replace")
        with next_version(deployed.folder, update.version) as folder:
            _write(folder, deployed, adaptation, artifact, update, runtime)
            _check_verified(folder)
    return update


class Runtime:
    """A bundle's backend in a child process, for building and running versions of it; a context manager."""

    def __init__(self, deployed: Deployed) -> None:
        self._deployed = deployed
        self._manifest, self._config = deployed.manifest, deployed.config
        self._work = Path(tempfile.mkdtemp(prefix="hwsearch-"))
        self._worker = Worker(
            self._manifest.target.backend,
            self._fast(),
            memory_bytes=self._config.search.memory_mb * 2**20,
            log=self._work / "log",
        )
        self.old = located(self._manifest.artifact, deployed.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def build(self, network: Any, calibration: Inputs) -> Artifact:
        """The artifact of a network with the layers of `Deployed.base`, lowered with ranges seen on `calibration`."""
        subject, candidate = self._deployed.subject, self._manifest.candidate
        parameters = folded_parameters(merge(network), subject.network.template.folded)
        model = self._work / "float.onnx"
        compressed = bind(subject.network, candidate, parameters, model)
        request = LowerRequest(
            precision=compressed.precision, ranges=self._ranges(model, compressed.precision, calibration)
        )
        options = dataclasses.replace(self._fast(), threads=self._manifest.target.threads)
        return self._worker.build(model, request, self._work / "built", options=options, timeout_s=self._timeout)

    def outputs(self, artifact: Artifact, inputs: Inputs) -> Inputs:
        """What an artifact answers, [N, ...]."""
        np.save(self._work / "inputs.npy", np.ascontiguousarray(inputs, np.float32))
        answers = self._work / "outputs.npy"
        self._worker.predict(
            artifact,
            self._work / "inputs.npy",
            answers,
            batch=batch_size(inputs),
            options=self._fast(),
            timeout_s=self._timeout,
        )
        found: Inputs = np.load(answers)
        if not np.isfinite(found).all():
            raise EvaluationError("the updated model returns NaN or infinity", stage="accuracy", kind="invalid")
        return found

    def scores(self, artifact: Artifact, data: SceneData) -> tuple[Accuracy | None, Accuracy | None]:
        """Accuracy in the scene of the bundle as it is and of `artifact`; None for both without labels."""
        if not len(data.targets):
            return None, None
        found = [self.accuracy(model, data.inputs, data.targets, data.sha256) for model in (self.old, artifact)]
        return found[0], found[1]

    def source_scores(self, artifact: Artifact) -> tuple[Accuracy, Accuracy]:
        """Likewise on the search split of the original data."""
        split = self._deployed.subject.splits.search
        found = [self.accuracy(model, split.inputs, split.targets, split.sha256) for model in (self.old, artifact)]
        return found[0], found[1]

    def accuracy(self, artifact: Artifact, inputs: Inputs, targets: NDArray[Any], sha256: str) -> Accuracy:
        """The study's metric of an artifact on some examples."""
        metric = self._deployed.subject.metric
        value, interval = metric.score(self.outputs(artifact, inputs), targets)
        return Accuracy(
            metric=metric.name,
            value=value,
            higher_is_better=metric.higher_is_better,
            examples=len(targets),
            ci95=interval,
            split="report",
            data_hash=sha256,
        )

    def latency_ratio(self, artifact: Artifact) -> float | None:
        """Latency of `artifact` as a multiple of the bundle's, both measured in turns."""
        target = self._manifest.target
        options = dataclasses.replace(
            self._fast(), threads=target.threads, batch=target.batch, cpus=tuple(usable_cores()[-target.threads :])
        )
        with Worker(target.backend, options, policy=TIMING) as worker:
            models = {"old": (self.old, options), "new": (artifact, options)}
            return worker.measure(models, reference="old", timeout_s=MEASURE_TIMEOUT_S)["new"].ratio

    def _ranges(self, model: Path, precision: dict[str, str], calibration: Inputs) -> dict[str, TensorRange]:
        method = self._manifest.candidate.recipe.get("ranges", self._config.quantize.ranges)
        backend = get_backend(self._manifest.target.backend)
        tensors = backend.tensors_to_observe(onnx.load(model), precision)
        if not tensors:
            return {}
        images = self._work / "calibrate.npy"
        np.save(images, np.ascontiguousarray(calibration, np.float32))
        seen = self._worker.observe(model, tensors, images, bins=bins_for(method), timeout_s=self._timeout)
        return ranges(seen, method)

    def _fast(self) -> RunOptions:
        return RunOptions(
            threads=len(usable_cores()) or os.cpu_count() or 1,
            float_precision=self._manifest.float_precision,
            options=self._manifest.target.options,
        )

    @property
    def _timeout(self) -> float:
        return self._config.search.timeout_s


def _calibration(deployed: Deployed, data: SceneData, *, remember: bool) -> Inputs:
    parts = [data.scene.images, data.scene.few, *([deployed.source.replay] if remember else [])]
    return np.concatenate(parts)


def _check_structure(old: Artifact, new: Artifact) -> None:
    if structure(old) != structure(new):
        raise BundleError(
            "the updated model has another graph than the bundle's",
            where=f"{old.path}",
            hint="it was exported by another version of hwsearch or of the runtime; export it again first",
        )


def _check_better(before: Accuracy | None, after: Accuracy | None) -> None:
    if before is None or after is None:
        return
    sign = 1 if after.higher_is_better else -1
    if sign * (after.value - before.value) <= 0:
        raise HwSearchError(
            f"the update does not help: {after.metric} in the scene {before.value:.4f} before, {after.value:.4f} after",
            hint="the bundle is as it was; --force updates all the same",
        )


def _write(
    folder: Path, deployed: Deployed, adaptation: Adaptation, artifact: Artifact, update: Update, runtime: Runtime
) -> None:
    """Fill the new folder: what does not change is copied, the rest made anew."""
    old = deployed.manifest
    skipped = {*OWN_FILES, *old.artifact.files}
    for file in deployed.folder.iterdir():
        if file.is_file() and file.name not in skipped:
            shutil.copyfile(file, folder / file.name)
    placed = place_model(artifact, folder, old.key)
    inputs = np.load(deployed.folder / "samples.npz")["inputs"]
    np.savez(folder / "samples.npz", inputs=inputs, outputs=runtime.outputs(located(placed, folder), inputs))
    save_adapter(
        folder,
        adaptation.network,
        deployed.base,
        adaptation.spec,
        {"scene": update.scene, "labels": update.labels, "rungs": list(update.rungs)},
        identity=deployed.identity,
    )
    manifest = _manifest(old, placed, update)
    (folder / "README.md").write_text(card(manifest))
    (folder / "requirements.txt").write_text(requirements_txt(manifest.requirements))
    hashes = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    write_manifest(folder, dataclasses.replace(manifest, files=hashes))


def _manifest(old: Manifest, placed: Artifact, update: Update) -> Manifest:
    runtime, version = format_of(placed).requirement(old.device.backend_version)
    figures = dataclasses.replace(
        old.figures, accuracy=update.after or update.source_after, size_bytes=placed.size_bytes
    )
    return dataclasses.replace(
        old,
        artifact=placed,
        figures=figures,
        requirements={"numpy": np.__version__, runtime: version},
        updates=(*old.updates, update),
        sha256="",
    )


def _check_verified(folder: Path) -> None:
    found = verify_bundle(folder, timing=False)
    if not found.ok:
        check = next(check for check in found.checks if check.ok is False)
        raise BundleError(f"the updated bundle fails its own check: {check.name}", where=check.detail)
