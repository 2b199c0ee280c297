"""How far hwsearch's latencies can be trusted on this machine. See README.md."""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from models import chain, variants

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.benchmark import BENCHMARK_POLICY
from hwsearch.backends.environment import read_environment
from hwsearch.backends.timing import (
    Comparison,
    Samples,
    TimingPolicy,
    between_campaigns,
    compare,
    summarise,
    through_reference,
)
from hwsearch.backends.worker import Worker
from hwsearch.store import write_json
from hwsearch.types import Artifact, to_json

HERE = Path(__file__).parent
CAMPAIGN = TimingPolicy(rounds=30, min_rounds=30)
SEARCH = TimingPolicy()
ONE_BLOCK = TimingPolicy(rounds=6, min_rounds=6, round_ms=10.0, sessions=1)
OPENED_ONCE = replace(BENCHMARK_POLICY, sessions=1)
TIMEOUT_S = 600.0
PLACE = "<!-- figures -->", "<!-- end of figures -->"
WAYS = (
    "one block, median", "campaign, median", "campaign, best", "search, best", "search, through reference", "search",
)  # fmt: skip
COLUMNS = ("what", "over", "measured", "goal")

Models = Mapping[str, Artifact]
Row = tuple[str, str, str, str]


class Bench:
    """The models, and how they are run."""

    def __init__(self, backend: str, folder: Path, count: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.backend = backend
        self.options = RunOptions(cpus=(cores[-1],))
        paths = {path.stem: path for path in variants(folder, count)}
        for depth in (25, 50, 51):
            paths[f"chain{depth}"] = chain(folder / f"chain{depth}.onnx", width=16, size=16, depth=depth)
        request = LowerRequest(precision={})
        with Worker(backend, self.options) as worker:
            self.device = worker.device()
            self.models = {
                name: worker.build(path, request, folder / name, timeout_s=TIMEOUT_S) for name, path in paths.items()
            }
        self.names = [name for name in paths if not name.startswith("chain")]

    def sample(self, models: Models, policy: TimingPolicy, reference: str | None = None) -> dict[str, Samples]:
        """Raw times of one campaign in a fresh child process."""
        with Worker(self.backend, self.options, policy=policy) as worker:
            artifacts = {name: (artifact, self.options) for name, artifact in models.items()}
            return worker.sample(artifacts, reference=reference, timeout_s=TIMEOUT_S)


def retest(bench: Bench) -> tuple[list[Row], list[dict[str, object]]]:
    """The same models measured twice, by the ways people use and by ours."""
    floor_ms = float(bench.sample({"chain25": bench.models["chain25"]}, CAMPAIGN)["chain25"].medians_ms.min())
    first, second = ({**one_blocks(bench), **campaign(bench), **search(bench, floor_ms)} for _ in range(2))
    rows, records = [], []
    for way in WAYS:
        before, after = (np.array([found[way, name] for name in bench.names]) for found in (first, second))
        change = 100 * np.abs(after / before - 1)
        goal = "mean ≤ 0.7 %, p95 ≤ 1.7 %" if way in ("campaign, best", "search") else ""
        figure = f"mean {change.mean():.2f} %, p95 {np.percentile(change, 95):.2f} %, max {change.max():.2f} %"
        rows.append((f"test–retest: {way}", f"{len(change)} models", figure, goal))
        records += [
            {"way": way, "model": name, "first_ms": x, "second_ms": y}
            for name, x, y in zip(bench.names, before, after, strict=True)
        ]
    return rows, records


def one_blocks(bench: Bench) -> dict[tuple[str, str], float]:
    """What most tools do: each model alone, one block of runs after a warm-up, the median."""
    found = {name: bench.sample({name: bench.models[name]}, ONE_BLOCK)[name] for name in bench.names}
    return {("one block, median", name): summarise(samples).median_ms for name, samples in found.items()}


def campaign(bench: Bench) -> dict[tuple[str, str], float]:
    """All models in turns."""
    found = bench.sample({name: bench.models[name] for name in bench.names}, CAMPAIGN)
    medians = {("campaign, median", name): float(np.median(found[name].medians_ms)) for name in bench.names}
    return medians | {("campaign, best", name): summarise(found[name]).best_ms for name in bench.names}


def search(bench: Bench, floor_ms: float) -> dict[tuple[str, str], float]:
    """What a search does: each model with a reference, as it comes."""
    found = {}
    for name in bench.names:
        pair = {name: bench.models[name], "chain25": bench.models["chain25"]}
        samples = bench.sample(pair, SEARCH, "chain25")
        latency = summarise(samples[name], samples["chain25"])
        found["search, best", name] = latency.best_ms
        found["search, through reference", name] = through_reference(latency, floor_ms).best_ms
        found["search", name] = between_campaigns(latency, floor_ms).best_ms
    return found


def equal(bench: Bench, pairs: int) -> tuple[list[Row], list[dict[str, object]]]:
    """The same file against itself, in a new process each time; each side opened four times, or once."""
    rows, records = [], []
    for kind, policy, goal in (("A/A", BENCHMARK_POLICY, "≤ 5 %"), ("A/A, each opened once", OPENED_ONCE, "")):
        found = []
        for number in range(pairs):
            artifact = bench.models[bench.names[number * 7 % len(bench.names)]]
            samples = bench.sample({"a": artifact, "b": artifact}, policy, "b")
            found.append(compare(samples["a"], samples["b"]))
        different = 100 * np.mean([c.verdict != "tied" for c in found])
        error = 100 * np.percentile([abs(c.ratio - 1) for c in found], 95)
        figure = f"{different:.1f} % called different; ratio off by {error:.2f} % (p95)"
        rows.append((kind, f"{pairs} pairs", figure, goal))
        records += [_record(kind, c, 0.0) for c in found]
    return rows, records


def two_percent(bench: Bench, pairs: int) -> tuple[list[Row], list[dict[str, object]]]:
    """51 identical blocks against 50, no more than 2 s a pair."""
    found, seconds, minima = [], [], []
    chains = {"a": bench.models["chain51"], "b": bench.models["chain50"]}
    for _ in range(pairs):
        samples = bench.sample(chains, BENCHMARK_POLICY, "b")
        found.append(compare(samples["a"], samples["b"]))
        minima.append(samples["a"].medians_ms.min() / samples["b"].medians_ms.min())
        seconds.append(sum(sum(map(sum, samples[name].rounds_ns)) for name in "ab") / 1e9)
    right = 100 * np.mean([c.ratio > 1 for c in found])
    called = 100 * np.mean([c.verdict == "slower" for c in found])
    ratio = np.median([c.ratio for c in found])
    figure = f"right sign {right:.1f} %, called slower {called:.1f} %; median ratio {ratio:.4f}, {max(seconds):.2f} s"
    by_minima = f"right sign {100 * np.mean(np.array(minima) > 1):.1f} %"
    rows = [
        ("2 % difference", f"{pairs} pairs", figure, "right sign ≥ 95 % within 2 s a pair"),
        ("2 % difference by the ratio of two minima", f"{pairs} pairs", by_minima, ""),
    ]
    return rows, [_record("2 %", c, s) for c, s in zip(found, seconds, strict=True)]


def parent_time(bench: Bench) -> tuple[list[Row], list[dict[str, object]]]:
    """Processor time this process spends while the child measures for a second."""
    policy = TimingPolicy(rounds=100_000, min_rounds=100_000, seconds=1.0)
    with Worker(bench.backend, bench.options, policy=policy) as worker:
        worker.device()
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        worker.measure({"a": (bench.models["chain50"], bench.options)}, timeout_s=TIMEOUT_S)
        after, wall_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - started
    used_ms = 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [("parent's CPU time", f"{wall_s:.2f} s measurement", f"{used_ms:.0f} ms", "< 50 ms")], []


@contextmanager
def background_load(processes: int) -> Iterator[None]:
    """Processes that work for random spells of up to 0.2 s, half of the time."""
    running = [multiprocessing.Process(target=_work_in_spells, args=(n,), daemon=True) for n in range(processes)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.kill()


def _work_in_spells(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - spells of load, not secrets
    data = np.ones((256, 256), np.float32)
    while True:
        end = time.monotonic() + 0.2 * draw.random()
        while time.monotonic() < end:
            np.multiply(data, data, out=data)
        time.sleep(0.2 * draw.random())


def _record(kind: str, found: Comparison, seconds: float) -> dict[str, object]:
    low, high = found.ci95
    return {"kind": kind, "ratio": found.ratio, "low": low, "high": high, "verdict": found.verdict, "seconds": seconds}


def write_table(
    rows: Sequence[Sequence[str]], heading: str, columns: Sequence[str] = COLUMNS, place: tuple[str, str] = PLACE
) -> str:
    """The rows as Markdown, also written between two markers of the README."""
    lines = (columns, ["---"] * len(columns), *rows)
    table = "\n".join([heading, "", *(f"| {' | '.join(line)} |" for line in lines)])
    readme, (start, end) = HERE / "README.md", place
    text = readme.read_text()
    before, after = text.split(start)[0], text.split(end)[1]
    readme.write_text(f"{before}{start}\n{table}\n{end}{after}")
    return table


def write_csv(path: Path, records: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=100, help="pairs for A/A and for the 2 %% difference")
    parser.add_argument("--load", type=int, default=0, help="background processes to start")
    arguments = parser.parse_args()
    environment = read_environment()
    with tempfile.TemporaryDirectory() as folder, background_load(arguments.load):
        bench = Bench(arguments.backend, Path(folder), arguments.models)
        retests, retest_records = retest(bench)
        equals, equal_records = equal(bench, arguments.pairs)
        differences, difference_records = two_percent(bench, arguments.pairs)
        parents, _ = parent_time(bench)
    rows = retests + equals + differences + parents
    heading = f"{bench.device.chip}, {bench.device.backend} {bench.device.backend_version}, one thread; load average "
    heading += f"{environment.load} before the start, {arguments.load} background processes."
    print(write_table(rows, heading))
    write_csv(HERE / "retest.csv", retest_records)
    write_csv(HERE / "pairs.csv", equal_records + difference_records)
    facts = {"device": to_json(bench.device), "environment": to_json(environment), "arguments": vars(arguments)}
    write_json(HERE / "results.json", {**facts, "rows": rows})


if __name__ == "__main__":
    main()
