"""Any set of model files measured against each other in one interleaved campaign, with a verdict for each pair."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.environment import Environment, read_environment
from hwsearch.backends.timing import Comparison, Samples, TimingPolicy, compare, summarise
from hwsearch.backends.worker import START_TIMEOUT_S, Worker
from hwsearch.errors import ConfigError
from hwsearch.store import sha256_files
from hwsearch.types import Artifact, Device, Latency

BENCHMARK_POLICY = TimingPolicy(rounds=200, min_rounds=30, seconds=1.0, half_width=0.003)
"""Longer than in a search: a comparison is all that is asked for."""

BUILD_TIMEOUT_S = 600.0
_BUILT_FORMATS = {".xml": "openvino-ir", ".engine": "tensorrt-engine"}
_SECONDS_PER_SLOW_MODEL = 60.0  # six rounds and the warm-up of a model that takes seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRow:
    """One model: its latency, and how it compares to the first (None for the first itself)."""

    name: str
    size_bytes: int
    latency: Latency
    against_first: Comparison | None
    steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """Rows in the order asked for, and where they were measured.

    Attributes:
        samples: Raw times per row name.
    """

    device: Device
    environment: Environment
    options: RunOptions
    rows: tuple[BenchmarkRow, ...]
    warnings: tuple[str, ...]
    samples: dict[str, Samples]


def benchmark(
    models: Sequence[Path],
    backend: str,
    options: RunOptions,
    policy: TimingPolicy = BENCHMARK_POLICY,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchmarkResult:
    """Every model's latency and its verdict against the first: faster, slower or tied.

    Example:
        >>> from hwsearch.backends.base import RunOptions
        >>> from hwsearch.backends.timing import TimingPolicy
        >>> quick = TimingPolicy(rounds=4, min_rounds=3, seconds=0.05)
        >>> found = hs.benchmark([model_file, model_file], "onnxruntime", RunOptions(threads=1), quick)
        >>> [row.latency.best_ms > 0 for row in found.rows], found.rows[1].against_first is not None
        ([True, True], True)

    Args:
        models: ONNX files, which are built as they are, or files the backend has built (``.xml``, ``.engine``). One
            file may be given several times.
        backend: Name of the backend.
        options: Threads, batch, float format and cores for all of them.
        policy: How long and how carefully.
        progress: Told one line before each step.

    Raises:
        ConfigError: no models, or a file that is missing or of unknown type.
        BackendUnavailableError: the runtime is not here.
        EvaluationError: a model cannot be built or run.
    """
    _check(models)
    names = names_of(models)
    environment = read_environment()
    with tempfile.TemporaryDirectory(prefix="hwsearch-") as folder, Worker(backend, options, policy=policy) as worker:
        device = worker.device()
        artifacts = {}
        for number, (name, path) in enumerate(zip(names, models, strict=True)):
            progress(f"building {name} ({number + 1}/{len(models)})")
            artifacts[name] = artifact_of(worker, path, Path(folder) / str(number)), options
        seconds = (policy.seconds + policy.warmup_seconds) * len(models)
        progress(f"measuring {len(models)} models in turns, at most {seconds:.0f} s")
        timeout_s = START_TIMEOUT_S + 2 * seconds + _SECONDS_PER_SLOW_MODEL * len(models)
        samples = worker.sample(artifacts, reference=names[0], timeout_s=timeout_s)
    rows = tuple(_row(name, artifacts[name][0], samples, policy, options.batch) for name in names)
    unsteady = tuple(f"{row.name} was still speeding up when warm-up ended" for row in rows if not row.steady)
    return BenchmarkResult(
        device=device,
        environment=environment,
        options=options,
        rows=rows,
        warnings=environment.warnings(options.threads) + unsteady,
        samples=samples,
    )


def _check(models: Sequence[Path]) -> None:
    if not models:
        raise ConfigError("no models to measure", hint="name one or more ONNX files")
    for path in models:
        if not path.is_file():
            raise ConfigError(f"file not found: {path}")
        if path.suffix not in {".onnx", *_BUILT_FORMATS}:
            allowed = ", ".join(sorted({".onnx", *_BUILT_FORMATS}))
            raise ConfigError(f"not a model file: {path}", where=f"suffix `{path.suffix}`", allowed=allowed)


def names_of(models: Sequence[Path]) -> list[str]:
    """The files' names; full paths where names repeat, and a number where paths do too."""
    names = [path.name for path in models]
    names = [str(path) if names.count(path.name) > 1 else path.name for path in models]
    return [f"{name} #{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def artifact_of(worker: Worker, path: Path, folder: Path) -> Artifact:
    """The model file as the backend opens it: built into `folder`, or as it is if it has been built."""
    if path.suffix == ".onnx":
        return worker.build(path, LowerRequest(precision={}), folder, timeout_s=BUILD_TIMEOUT_S)
    files = [path] + [path.with_suffix(".bin")] * (path.suffix == ".xml")
    return Artifact(
        path=str(path),
        files=tuple(map(str, files)),
        format=_BUILT_FORMATS[path.suffix],
        sha256=sha256_files(files),
        size_bytes=sum(file.stat().st_size for file in files),
        portable=path.suffix == ".xml",
    )


def _row(name: str, artifact: Artifact, samples: dict[str, Samples], policy: TimingPolicy, batch: int) -> BenchmarkRow:
    first = next(iter(samples))
    return BenchmarkRow(
        name=name,
        size_bytes=artifact.size_bytes,
        latency=summarise(samples[name], samples[first], policy=policy, batch=batch),
        against_first=None if name == first else compare(samples[name], samples[first], policy=policy),
        steady=samples[name].steady,
    )
