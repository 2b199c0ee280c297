"""Builds and measures a set of small models in one interleaved campaign."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import Worker
from hwsearch.types import Artifact, Latency, Target, TensorRange

POLICY = TimingPolicy(rounds=12, min_rounds=8, seconds=1.0, round_ms=3.0, half_width=0.005, warmup_seconds=0.02)
BUILD_TIMEOUT_S = 120.0
CAMPAIGN_TIMEOUT_S = 60.0  # and as much again per model as its share of the policy's time allows

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
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return RunOptions(
        threads=target.threads,
        batch=target.batch,
        float_precision=float_precision,
        cpus=tuple(cores[-target.threads :]),
    )


def measure_jobs(jobs: Sequence[Job], target: Target, progress: Progress) -> list[Latency]:
    """Latency of every job, all measured in turns.

    Raises:
        EvaluationError: a model cannot be built or measured.
    """
    backend = get_backend(target.backend)
    with tempfile.TemporaryDirectory() as folder:
        artifacts: dict[str, tuple[Artifact, RunOptions]] = {}
        with Worker(target.backend, RunOptions(threads=os.cpu_count() or 1)) as builder:
            for i, job in enumerate(jobs):
                progress("build", i, len(jobs))
                path, options = Path(folder) / f"{i}.onnx", run_options(target, job.float_precision)
                onnx.save(job.model, path)
                tensors = backend.tensors_to_observe(job.model, job.precision)
                request = LowerRequest(precision=job.precision, ranges={name: job.ranges[name] for name in tensors})
                artifact = builder.build(
                    path, request, Path(folder) / str(i), timeout_s=BUILD_TIMEOUT_S, options=options
                )
                artifacts[str(i)] = (artifact, options)
                path.unlink()
        progress("measure", 0, len(jobs))
        with Worker(target.backend, run_options(target), policy=POLICY) as worker:
            found = worker.measure(artifacts, timeout_s=CAMPAIGN_TIMEOUT_S + 4 * POLICY.seconds * len(jobs))
        progress("measure", len(jobs), len(jobs))
    return [found[str(i)] for i in range(len(jobs))]
