"""Export: one model with everything needed to run it, trust it and make it again, in one folder."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.config import DataConfig, StudyConfig, resolved_yaml
from hwsearch.errors import ConfigError
from hwsearch.export.card import card, layers_csv, requirements_txt
from hwsearch.export.folder import staged_folder
from hwsearch.export.formats import format_of, place_model, shipped_program
from hwsearch.export.manifest import FILE, Figures, Manifest, Tensor, located, write_manifest
from hwsearch.model.sources import DIGITS, IMAGENET
from hwsearch.store import sha256_file
from hwsearch.types import Artifact, Device, Failure, Front, FrontPoint, SourceModel, Success, Target, Trial
from hwsearch.types.built import WEIGHTS, trained_weights

SAMPLES = 8

_DEFAULT_NORMALIZE = {"cifar10": IMAGENET, "digits": DIGITS, "folder": IMAGENET}

ReportWriter = Callable[[Path], object]
"""Writes the run's report to a file."""


class ExportableRun(Protocol):
    """What an export reads of a run; `hwsearch.search.run.Run` is one."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def config(self) -> StudyConfig: ...  # noqa: D102
    @property
    def source(self) -> SourceModel: ...  # noqa: D102
    @property
    def target(self) -> Target: ...  # noqa: D102
    @property
    def device(self) -> Device: ...  # noqa: D102
    @property
    def versions(self) -> dict[str, str]: ...  # noqa: D102
    @property
    def trials(self) -> tuple[Trial, ...]: ...  # noqa: D102
    @property
    def front(self) -> Front | None: ...  # noqa: D102

    def trial(self, key: str) -> Trial: ...  # noqa: D102
    def artifact(self, key: str) -> Artifact: ...  # noqa: D102


def export_bundle(
    run: ExportableRun, key: str, out: Path | str, *, force: bool = False, write_report: ReportWriter | None = None
) -> Path:
    """The folder `out`, holding one candidate's model and its proof; it appears whole, or not at all.

    Args:
        run: Where the candidate was evaluated.
        key: The candidate's key, or an unambiguous beginning of it.
        out: The folder to make; it may exist if it is empty.
        force: Replace `out` if it is a bundle.
        write_report: Called for ``report.html`` if the run has none yet.

    Raises:
        ConfigError: no such candidate, it failed, its files are gone, or `out` is taken or cannot be written.
    """
    trial = run.trial(key)
    _success_of(trial)
    artifact = _existing(run.artifact(trial.candidate.key))
    inputs = _sample_inputs(run.path)
    with staged_folder(Path(out), force=force, marker=FILE) as folder:
        placed = place_model(artifact, folder, trial.candidate.key)
        if (trained := trained_weights(run.path, trial.candidate.key)).exists():
            shutil.copyfile(trained, folder / WEIGHTS)
        outputs = _outputs_of(placed, folder, trial, run.target, inputs)
        np.savez(folder / "samples.npz", inputs=inputs, outputs=outputs)
        manifest = _manifest(run, trial, placed, format_of(placed).names(folder / placed.path), (inputs, outputs))
        _write_texts(folder, run, manifest, write_report)
        hashes = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
        write_manifest(folder, dataclasses.replace(manifest, files=hashes))
    return Path(out)


class ChosenPoint(Protocol):
    """A point of a front and the run it came from; `hwsearch.search.api.Chosen` is one."""

    @property
    def run(self) -> ExportableRun: ...  # noqa: D102
    @property
    def key(self) -> str: ...  # noqa: D102


def export(chosen: ChosenPoint, out: Path | str, *, force: bool = False) -> Path:
    """`export_bundle` of a chosen point.

    Example:
        >>> study = hs.Study.open(run_folder)
        >>> bundle = hs.export(study.front().pick(min_accuracy=0.0), "shipped")
        >>> (bundle / "model.onnx").exists(), (bundle / "infer.py").exists()
        (True, True)
    """
    return export_bundle(chosen.run, chosen.key, out, force=force)


def export_front(
    run: ExportableRun, out: Path | str, *, force: bool = False, write_report: ReportWriter | None = None
) -> list[Path]:
    """One bundle per point of the front, below `out`, named ``<latency>ms-<accuracy>-<key>``, fastest first.

    Raises:
        ConfigError: as for `export_bundle`, or the run has no front yet.
    """
    points = [point for point in run.front.points if point.on_front] if run.front else []
    if not points:
        raise ConfigError(f"{run.path} has no front to export yet", hint="finish the search first")
    return [
        export_bundle(
            run,
            point.key,
            Path(out) / f"{point.latency.best_ms:.3f}ms-{point.accuracy.value:.4f}-{point.key}",
            force=force,
            write_report=write_report,
        )
        for point in points
    ]


def _success_of(trial: Trial) -> Success:
    if isinstance(trial.outcome, Failure):
        raise ConfigError(
            f"candidate `{trial.candidate.key}` failed, so there is no model to export",
            where=f"{trial.outcome.stage}: {trial.outcome.message}",
            hint=trial.outcome.hint,
        )
    return trial.outcome


def _existing(artifact: Artifact) -> Artifact:
    for file in artifact.files:
        if not Path(file).is_file():
            raise ConfigError(f"the model file is gone: {file}", hint="search again; evaluations it has are kept")
    return artifact


def _sample_inputs(run: Path) -> NDArray[np.float32]:
    path = run / "work" / "search.inputs.npy"
    if not path.is_file():
        raise ConfigError(f"the run's inputs are gone: {path}", hint="run the search again; it keeps what it has")
    return np.array(np.load(path, mmap_mode="r")[:SAMPLES], dtype=np.float32)


def _outputs_of(
    placed: Artifact, folder: Path, trial: Trial, target: Target, inputs: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the shipped file answers, in the backend."""
    options = RunOptions(
        threads=target.threads,
        batch=len(inputs),
        float_precision=trial.candidate.float_precision,
        options=target.options,
    )
    return get_backend(target.backend).open(located(placed, folder), options).run(inputs)


def _manifest(
    run: ExportableRun,
    trial: Trial,
    placed: Artifact,
    names: tuple[str, str],
    samples: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Manifest:
    success = _success_of(trial)
    runtime, version = format_of(placed).requirement(run.device.backend_version)
    return Manifest(
        key=trial.candidate.key,
        study=run.config.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        source=run.source.name,
        source_sha256=run.source.sha256,
        candidate=trial.candidate,
        target=run.target,
        device=run.device,
        metric=run.config.metric,
        direction=run.config.direction,
        float_precision=trial.candidate.float_precision,
        figures=_figures(run, trial, success),
        baselines={
            other.baseline: _figures(run, other, other.outcome)
            for other in run.trials
            if other.baseline is not None and isinstance(other.outcome, Success)
        },
        params=success.params,
        macs=success.macs,
        layers=success.layers,
        artifact=placed,
        input=Tensor(name=names[0], shape=samples[0].shape[1:]),
        output=Tensor(name=names[1], shape=samples[1].shape[1:]),
        preprocessing=_preprocessing(run.config.data),
        versions=dict(run.versions),
        requirements={"numpy": np.__version__, runtime: version},
        files={},
    )


def _preprocessing(data: DataConfig) -> dict[str, object]:
    normalize = data.normalize or _DEFAULT_NORMALIZE.get(data.source)
    return {
        "source": data.source,
        "pixels": "0..1",
        "normalize": normalize and {"mean": list(normalize.mean), "std": list(normalize.std)},
    }


def _figures(run: ExportableRun, trial: Trial, success: Success) -> Figures:
    """From the front, measured together and on the report split, where the trial is part of it."""
    for point in run.front.points if run.front else ():
        if point.key == trial.candidate.key:
            return _measured(point, point.size_bytes)
    return _measured(success, success.artifact.size_bytes)


def _measured(found: FrontPoint | Success, size_bytes: int) -> Figures:
    return Figures(accuracy=found.accuracy, latency=found.latency, size_bytes=size_bytes, energy=found.energy)


def _write_texts(folder: Path, run: ExportableRun, manifest: Manifest, write_report: ReportWriter | None) -> None:
    texts: Mapping[str, str] = {
        "README.md": card(manifest),
        "study.yaml": _study_without_secrets(run.config),
        "layers.csv": layers_csv(manifest.layers),
        "requirements.txt": requirements_txt(manifest.requirements),
        "infer.py": format_of(manifest.artifact).program(),
        "verify.py": shipped_program("verify.py"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    report = run.path / "report.html"
    if report.is_file():
        (folder / "report.html").write_bytes(report.read_bytes())
    elif write_report is not None:
        write_report(folder / "report.html")


def _study_without_secrets(config: StudyConfig) -> str:
    """The resolved study; a storage URL may hold a password, and means nothing elsewhere."""
    study = yaml.safe_load(resolved_yaml(config))
    study["search"]["storage"] = None
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
