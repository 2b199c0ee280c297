"""What on this machine disturbs measurements: recorded and warned about, never a reason to fail.

`read_environment` reads what Linux says; `probe_noise` measures what is left after all our precautions.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hwsearch.backends.campaign import Clock, Step, measure_interleaved
from hwsearch.backends.timing import Samples, TimingPolicy, compare

CGROUP_WITHOUT_LIMIT = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Settings and load of the machine; None where the system does not say.

    Attributes:
        cpus: Cores this process may use.
        load: Mean number of running processes over the last minute.
        governor: Frequency governors in use, e.g. ``performance``.
        turbo: Whether the processor may raise its clock above nominal.
        smt: Whether cores share execution units with a sibling.
        virtual: Whether this is a virtual machine.
        steal_pct: Share of processor time since boot that the host gave to others.
        quota_cpus: Processors' worth of time the control group allows.
    """

    cpus: int
    load: float | None
    governor: str | None
    turbo: bool | None
    smt: bool | None
    virtual: bool | None
    steal_pct: float | None
    quota_cpus: float | None

    def warnings(self, threads: int = 1) -> tuple[str, ...]:
        """What may make latency measured with `threads` threads noisy or unlike another machine's, one line each."""
        found = {
            f"load is {self.load or 0:.1f} on {self.cpus} cores: other processes compete with the measurement": (
                self.load is not None and self.load + threads > self.cpus + 0.5
            ),
            f"frequency governor is `{self.governor}`, not `performance`: the clock may vary": (
                self.governor not in (None, "performance")
            ),
            "turbo is on: the clock depends on temperature and on the load of other cores": self.turbo is True,
            "SMT is on: a busy sibling slows a core": self.smt is True,
            f"the host took {self.steal_pct or 0:.1f} % of processor time since boot (steal)": (
                (self.steal_pct or 0) > 1
            ),
            f"the control group allows {self.quota_cpus or 0:g} processors: threads are paused when it is used up": (
                self.quota_cpus is not None and self.quota_cpus < min(threads + 1, self.cpus)
            ),
            f"{threads} threads asked, {self.cpus} cores usable": threads > self.cpus,
        }
        return tuple(text for text, applies in found.items() if applies)


def usable_cores() -> list[int]:
    """Numbers of the cores this process may run on; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def usable_core_count() -> int:
    """How many cores this process may run on; all there are where the system does not say which."""
    return len(usable_cores()) or os.cpu_count() or 1


def read_environment(root: Path = Path("/")) -> Environment:
    """The machine as Linux describes it below `root`; elsewhere, and where a file is missing, None."""
    cpu = root / "sys/devices/system/cpu"
    governors = {_read(path) for path in cpu.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    smt = _read(cpu / "smt/active")
    load = _read(root / "proc/loadavg")
    flags = _read(root / "proc/cpuinfo")
    return Environment(
        cpus=usable_core_count(),
        load=float(load.split()[0]) if load else None,
        governor=", ".join(sorted(g for g in governors if g)) or None,
        turbo=_turbo(cpu),
        smt=None if smt is None else smt == "1",
        virtual=None if flags is None else " hypervisor" in flags,
        steal_pct=_steal_pct(root / "proc/stat"),
        quota_cpus=_quota_cpus(root / "sys/fs/cgroup"),
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _turbo(cpu: Path) -> bool | None:
    no_turbo = _read(cpu / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = _read(cpu / "cpufreq/boost")
    return None if boost is None else boost == "1"


def _steal_pct(stat: Path) -> float | None:
    fields = (_read(stat) or "").split("\n", 1)[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    ticks = [int(field) for field in fields[1:9]]  # user nice system idle iowait irq softirq steal
    return 100 * ticks[7] / max(sum(ticks), 1)


def _quota_cpus(cgroup: Path) -> float | None:
    unified = (_read(cgroup / "cpu.max") or "").split()
    if len(unified) == 2 and unified[0] != CGROUP_WITHOUT_LIMIT:
        return int(unified[0]) / int(unified[1])
    quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What measuring the same work again and again gave.

    Attributes:
        windows: Independent short campaigns, each timing two copies of the same work in turns.
        disturbed_pct: Rounds more than 5 % above the fastest of all.
        drift_pct: How far the best of a window lay above the best of all, at worst: absolute latencies measured at
            different times differ by so much.
        ratio_error_pct: How far the ratio of the two copies lay from 1, 95th percentile of windows: differences below
            this are noise.
        verdict: ``quiet``, ``usable`` (compare ratios, not milliseconds of different campaigns) or ``noisy``.
    """

    windows: int
    disturbed_pct: float
    drift_pct: float
    ratio_error_pct: float
    verdict: Literal["quiet", "usable", "noisy"]


def probe_noise(seconds: float = 5.0, *, clock: Clock = time.perf_counter_ns, work: Step | None = None) -> Noise:
    """How noisy this machine is for about `seconds` seconds of measuring.

    Args:
        seconds: At least five windows are run, however long they take.
        clock: Nanoseconds.
        work: What to time; by default small matrix products, some 0.1 ms on one core.
    """
    step = work or _matrix_products()
    policy = TimingPolicy(rounds=20, min_rounds=20, seconds=1.0, warmup_seconds=0.1)
    deadline = clock() + seconds * 1e9
    windows: list[tuple[Samples, Samples]] = []
    while len(windows) < 5 or clock() < deadline:
        both = measure_interleaved({"one": [step], "other": [step]}, policy, clock)
        windows.append((both["one"], both["other"]))
    return _judge(windows)


def _judge(windows: list[tuple[Samples, Samples]]) -> Noise:
    medians = np.array([np.concatenate([one.medians_ms, other.medians_ms]) for one, other in windows])
    floor = medians.min()
    errors = [abs(compare(one, other).ratio - 1) for one, other in windows]
    drift_pct = 100 * float(medians.min(axis=1).max() / floor - 1)
    ratio_error_pct = 100 * float(np.percentile(errors, 95))
    quiet = drift_pct < 1.5 and ratio_error_pct < 1
    return Noise(
        windows=len(windows),
        disturbed_pct=100 * float((medians > 1.05 * floor).mean()),
        drift_pct=drift_pct,
        ratio_error_pct=ratio_error_pct,
        verdict="quiet" if quiet else "usable" if ratio_error_pct < 2 else "noisy",
    )


def _matrix_products() -> Step:
    """Small float32 products over a megabyte: arithmetic and cache traffic like a small network's, in one thread."""
    left, right = np.random.default_rng(0).standard_normal((2, 32, 48, 48), dtype=np.float32)
    out = np.empty_like(left)

    def work() -> None:
        np.matmul(left, right, out=out)

    return work
