"""Is a bundle still what was exported, and does it do here what it did there?

Imports neither torch nor the runtime until it is needed: a bundle is checked with what it takes to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.base import Backend, RunOptions, get_backend
from hwsearch.backends.environment import usable_cores
from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import Worker
from hwsearch.errors import BackendUnavailableError, DataError, EvaluationError, HwSearchError
from hwsearch.export.manifest import FILE, Manifest, located, parse_manifest, read_facts
from hwsearch.export.shipped.verify import damage, judge
from hwsearch.types import SCHEMA_VERSION, Accuracy, Device, to_json

Data = tuple[NDArray[Any], NDArray[Any]]

BATCH = 64
TIMING = TimingPolicy(rounds=15, seconds=1.0)
TIMEOUT_S = 120.0
MUCH_SLOWER = 2.0
LIKE_RECORDED = 0.02  # for metrics without an interval: relative difference that still counts as the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at.

    Attributes:
        ok: None when it was skipped; `detail` says why.
        warning: Nothing is broken, but the numbers of the bundle do not simply hold here.
    """

    name: str
    ok: bool | None
    detail: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify_bundle` found, in the order it looked."""

    path: str
    key: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed; skipped ones do not count."""
        return all(check.ok is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {"schema_version": SCHEMA_VERSION, "ok": self.ok, **to_json(self)}


def verify_bundle(
    path: Path | str, *, data: Data | None = None, examples: int = 1000, timing: bool = True
) -> VerifyReport:
    """Hash every file, run the stored samples, and on request score and time the model again.

    Example:
        >>> bundle = hs.export(hs.Study.open(run_folder).front().pick(min_accuracy=0.0), "checked")
        >>> hs.verify(bundle, timing=False).ok
        True

    Args:
        path: A folder that `export_bundle` wrote.
        data: Inputs [N, ...], preprocessed as the model takes them, and targets [N, ...]; None skips accuracy.
        examples: Most examples to score, drawn at random from `data`.
        timing: Whether to measure latency.

    Raises:
        BundleError: the folder is no bundle, or its hwsearch.json cannot be read.
        BackendUnavailableError: the model's runtime is not installed here.
        DataError: `data` does not fit the model.
    """
    folder = Path(path)
    facts = read_facts(folder)
    manifest = parse_manifest(facts)
    damaged = damage(folder, facts)
    checks = [_files_check(manifest, damaged)]
    if damaged.keys() & {FILE, "samples.npz", *manifest.artifact.files}:
        checks += [Check(name="samples", ok=None, detail="not run: the files differ from those exported")]
    else:
        checks += _checks_on_device(folder, manifest, data=data, examples=examples, timing=timing)
    return VerifyReport(path=str(folder), key=manifest.key, checks=tuple(checks))


verify = verify_bundle  # its name as `hwsearch.verify`


def _files_check(manifest: Manifest, damaged: dict[str, str]) -> Check:
    detail = "; ".join(f"{name}: {what}" for name, what in damaged.items())
    return Check(name="files", ok=not damaged, detail=detail or f"{len(manifest.files)} files unchanged")


def _checks_on_device(
    folder: Path, manifest: Manifest, *, data: Data | None, examples: int, timing: bool
) -> list[Check]:
    backend = _available(manifest, folder)
    target = manifest.target
    here = backend.device(RunOptions(threads=target.threads, batch=target.batch, options=target.options))
    checks = [_device_check(manifest.device, here), _runtime_check(manifest.device, here)]
    if not manifest.artifact.portable and here != manifest.device:
        return [*checks, Check(name="samples", ok=None, detail="not run: the file runs only on the device it is for")]
    model = _Model(folder, manifest, backend)
    samples = _samples_check(model, here)
    if samples.ok is False:
        return [*checks, samples]
    return [
        *checks,
        samples,
        _accuracy_check(model, data, examples),
        _latency_check(model, here) if timing else Check(name="latency", ok=None, detail="not asked for"),
    ]


@dataclass(frozen=True, slots=True)
class _Model:
    """A bundle's model and what runs it."""

    folder: Path
    manifest: Manifest
    backend: Backend

    def options(self, batch: int, cpus: tuple[int, ...] = ()) -> RunOptions:
        return RunOptions(
            threads=self.manifest.target.threads,
            batch=batch,
            float_precision=self.manifest.float_precision,
            options=self.manifest.target.options,
            cpus=cpus,
        )

    def predict(self, inputs: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        """Outputs [N, ...]; the last batch is filled up with its last example."""
        session = self.backend.open(located(self.manifest.artifact, self.folder), self.options(batch))
        missing = -len(inputs) % batch
        filled = np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)])
        outputs = [session.run(filled[start : start + batch]).copy() for start in range(0, len(filled), batch)]
        return np.concatenate(outputs)[: len(inputs)]


def _available(manifest: Manifest, folder: Path) -> Backend:
    backend = get_backend(manifest.target.backend)
    found = backend.availability()
    if not found.ok:
        raise BackendUnavailableError(
            f"the runtime of this bundle is not here: {found.problem}",
            where=f"{FILE}: target.backend = {manifest.target.backend}",
            hint=f"pip install -r {folder / 'requirements.txt'}",
        )
    return backend


def _device_check(recorded: Device, here: Device) -> Check:
    if _processor(recorded) == _processor(here):
        return Check(name="device", ok=True, detail=f"as recorded: {_described(here)}")
    detail = f"another device: here {_described(here)}; recorded on {_described(recorded)}"
    return Check(name="device", ok=True, detail=detail, warning=True)


def _runtime_check(recorded: Device, here: Device) -> Check:
    if recorded.backend_version == here.backend_version:
        return Check(name="runtime", ok=True, detail=f"as recorded: {here.backend} {here.backend_version}")
    detail = f"another version: here {here.backend} {here.backend_version}; recorded with {recorded.backend_version}"
    return Check(name="runtime", ok=True, detail=detail, warning=True)


def _processor(device: Device) -> tuple[str, tuple[str, ...]]:
    return device.chip, device.isa


def _described(device: Device) -> str:
    return f"{device.chip} ({', '.join(device.isa) or 'no special instruction sets'})"


def _samples_check(model: _Model, here: Device) -> Check:
    """Outputs of the stored inputs; other processors and versions may round 8 and 16 bits differently."""
    recorded = model.manifest.device
    alike = _processor(recorded) == _processor(here) and recorded.backend_version == here.backend_version
    samples = np.load(model.folder / "samples.npz")
    try:
        outputs = model.predict(samples["inputs"], len(samples["inputs"]))
    except Exception as error:  # noqa: BLE001 - runtimes raise their own kinds; the reader wants to know why
        return Check(name="samples", ok=False, detail=f"the model does not run here: {_first_line(error)}")
    ok, detail = judge(outputs, samples["outputs"], exact=model.manifest.exact or alike)
    return Check(name="samples", ok=ok, detail=detail if alike else f"{detail} (on another device or runtime)")


def _accuracy_check(model: _Model, data: Data | None, examples: int) -> Check:
    if data is None:
        return Check(name="accuracy", ok=None, detail="no data given")
    inputs, targets = _drawn(data, examples, model.manifest.input.shape)
    from hwsearch.model.metric import load_metric

    try:
        metric = load_metric(model.manifest.metric, model.manifest.direction, base_dir=model.folder)
    except HwSearchError as error:
        return Check(name="accuracy", ok=None, detail=f"the metric cannot be loaded here: {error.message}")
    value, interval = metric.score(model.predict(inputs, min(BATCH, len(inputs))), targets)
    recorded = model.manifest.figures.accuracy
    return Check(
        name="accuracy",
        ok=_same_accuracy(recorded, value, interval),
        detail=f"{recorded.metric} {value:.4f} on {len(inputs)} examples; "
        f"recorded {recorded.value:.4f} on {recorded.examples} of the {recorded.split} split",
    )


def _drawn(data: Data, examples: int, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    inputs, targets = data
    if len(inputs) == 0 or len(inputs) != len(targets) or inputs.shape[1:] != shape:
        raise DataError(
            "the data do not fit the model",
            where=f"inputs {list(inputs.shape)}, targets {list(targets.shape)}",
            allowed=f"inputs [N, {', '.join(map(str, shape))}] and as many targets",
        )
    chosen = np.random.default_rng(0).permutation(len(inputs))[:examples]
    return np.ascontiguousarray(inputs[chosen], dtype=np.float32), targets[chosen]


def _same_accuracy(recorded: Accuracy, value: float, interval: tuple[float, float] | None) -> bool:
    """Whether the intervals meet."""
    if recorded.ci95 is None or interval is None:
        return abs(value - recorded.value) <= LIKE_RECORDED * abs(recorded.value)
    return interval[0] <= recorded.ci95[1] and recorded.ci95[0] <= interval[1]


def _latency_check(model: _Model, here: Device) -> Check:
    """Never fails: a slow machine is not a broken bundle."""
    recorded = model.manifest.figures.latency
    options = model.options(recorded.batch, _last_cores(model.manifest.target.threads))
    artifact = located(model.manifest.artifact, model.folder)
    try:
        with Worker(model.manifest.target.backend, options, policy=TIMING) as worker:
            measured = worker.measure({"model": (artifact, options)}, timeout_s=TIMEOUT_S)["model"]
    except EvaluationError as error:
        return Check(name="latency", ok=None, detail=f"could not be measured: {error.message}", warning=True)
    ratio = measured.best_ms / recorded.best_ms
    same = here == model.manifest.device
    detail = f"{measured.best_ms:.4g} ms, {ratio:.2f} times the {recorded.best_ms:.4g} ms recorded"
    return Check(
        name="latency",
        ok=True,
        detail=detail if same else f"{detail} on another device or runtime",
        warning=same and ratio > MUCH_SLOWER,
    )


def _last_cores(threads: int) -> tuple[int, ...]:
    """Where the search measures: system work tends to run on the first cores."""
    cores = usable_cores()
    return tuple(cores[-threads:])


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n", 1)[0]
