"""Builds and measures a set of small models in one interleaved campaign."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.backends.environment import usable_cores
from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import Worker
from hwsearch.types import Artifact, Latency, Target, TensorRange

MANY = TimingPolicy(
    rounds=12, min_rounds=8, seconds=1.0, round_ms=3.0, half_width=0.005, warmup_seconds=0.02, sessions=1
)
"""For hundreds of models at once, whose errors a fit averages."""

TRUTH = dataclasses.replace(MANY, rounds=24, min_rounds=12, sessions=2)
"""For the models a table is judged by."""

BUILD_TIMEOUT_S = 120.0
CAMPAIGN_TIMEOUT_S = 60.0  # and as much again per model as its share of the policy's time allows

Built = dict[str, tuple[Artifact, RunOptions]]

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many are done, and out of how many."""


@dataclass(frozen=True, slots=True)
class Job:
    """A float model to build and measure.

    Attributes:
        model: Float ONNX model.
        precision: Layer -> precision.
        float_precision: Format of what is not quantised.
        ranges: A plausible range for every tensor.
    """

    model: onnx.ModelProto
    precision: Mapping[str, str]
    float_precision: str
    ranges: Mapping[str, TensorRange]


def run_options(target: Target, float_precision: str = "fp32") -> RunOptions:
    """How latency is measured: the target's threads and batch, pinned to the machine's last cores."""
    cores = usable_cores()
    return RunOptions(
        threads=target.threads,
        batch=target.batch,
        float_precision=float_precision,
        options=target.options,
        cpus=tuple(cores[-target.threads :]),
    )


def measure_jobs(jobs: Sequence[Job], target: Target, policy: TimingPolicy, progress: Progress) -> list[Latency | None]:
    """Latency of every job, all measured in turns; None where the runtime cannot run a model.

    Raises:
        EvaluationError: a model cannot be built, none can be run, or the campaign itself fails.
    """
    with tempfile.TemporaryDirectory() as folder, Worker(target.backend, run_options(target)) as builder:
        built: Built = {}
        for i, job in enumerate(jobs):
            progress("build", i, len(jobs))
            built[str(i)] = _build(builder, job, target, Path(folder) / str(i))
        progress("measure", 0, len(jobs))
        found = _measure(built, target, policy)
        progress("measure", len(jobs), len(jobs))
    return [found.get(str(i)) for i in range(len(jobs))]


def _build(builder: Worker, job: Job, target: Target, folder: Path) -> tuple[Artifact, RunOptions]:
    options = run_options(target, job.float_precision)
    tensors = get_backend(target.backend).tensors_to_observe(job.model, job.precision)
    request = LowerRequest(precision=job.precision, ranges={name: job.ranges[name] for name in tensors})
    path = folder.with_suffix(".onnx")
    onnx.save(job.model, path)
    artifact = builder.build(path, request, folder, timeout_s=BUILD_TIMEOUT_S, options=options)
    path.unlink()
    return artifact, options


def _measure(built: Built, target: Target, policy: TimingPolicy) -> dict[str, Latency]:
    """Latency of what can be run: OpenVINO 2026.4, for one, cannot compile some mixtures of bf16 and int8."""
    timeout_s = CAMPAIGN_TIMEOUT_S + 4 * policy.seconds * policy.sessions * len(built)
    with Worker(target.backend, run_options(target), policy=policy) as worker:
        return worker.measure(built, timeout_s=timeout_s, partial=True)
