"""The environment record read from made-up machines, and the noise probe on simulated ones."""

import random

import pytest

from hwsearch.backends.environment import probe_noise, read_environment


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return read_environment(root)


CPU = "sys/devices/system/cpu"
NOISY = {
    f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave",
    f"{CPU}/intel_pstate/no_turbo": "0",
    f"{CPU}/smt/active": "1",
    "proc/loadavg": "900.5 1.0 1.0 2/345 678",
    "proc/cpuinfo": "flags : fpu hypervisor",
    "proc/stat": "cpu 100 0 0 800 0 0 0 100 0 0\ncpu0 1 0 0 8 0 0 0 1 0 0",
    "sys/fs/cgroup/cpu.max": "50000 100000",
}


def test_a_noisy_machine_is_described_and_warned_about(tmp_path):
    found = machine(tmp_path, NOISY)
    assert (found.governor, found.turbo, found.smt, found.virtual) == ("powersave", True, True, True)
    assert (found.load, found.steal_pct, found.quota_cpus) == (900.5, 10, 0.5)
    warnings = "\n".join(found.warnings())
    for word in ("load is 900.5", "`powersave`", "turbo", "SMT", "10.0 %", "0.5 processors"):
        assert word in warnings
    assert "cores usable" in "\n".join(found.warnings(threads=found.cpus + 1))


def test_a_quiet_machine_gives_no_warning(tmp_path):
    quiet = {
        f"{CPU}/cpu0/cpufreq/scaling_governor": "performance",
        f"{CPU}/cpufreq/boost": "0",
        f"{CPU}/smt/active": "0",
        "proc/loadavg": "0.00 0.00 0.00 1/2 3",
        "proc/cpuinfo": "flags : fpu",
        "proc/stat": "cpu 100 0 0 900 0 0 0 0 0 0",
        "sys/fs/cgroup/cpu.max": "max 100000",
    }
    found = machine(tmp_path, quiet)
    assert found.warnings() == ()
    assert (found.turbo, found.virtual, found.quota_cpus) == (False, False, None)


@pytest.mark.parametrize(("quota", "cpus"), [("150000", 1.5), ("-1", None)])
def test_the_older_control_group_files_are_read(tmp_path, quota, cpus):
    folder = "sys/fs/cgroup/cpu"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    assert machine(tmp_path, files).quota_cpus == cpus


def test_what_the_system_does_not_say_is_none_and_no_failure(tmp_path):
    found = read_environment(tmp_path)
    assert (found.load, found.governor, found.turbo, found.smt, found.steal_pct) == (None,) * 5
    assert found.warnings() == ()


def simulated(jitter, slow_every=None):
    """Noise of a simulated machine that runs 20 % slower in every other period of `slow_every` seconds."""
    draw = random.Random(0)
    now = 0.0

    def work():
        nonlocal now
        slow = slow_every is not None and int(now / 1e9 / slow_every) % 2
        now += 1e5 * (1.2 if slow else 1) * (1 + jitter * draw.random())

    return probe_noise(2.0, clock=lambda: int(now), work=work)


def test_probe_calls_a_steady_machine_quiet():
    found = simulated(0.001)
    assert (found.verdict, found.disturbed_pct) == ("quiet", 0)
    assert found.windows >= 5


def test_probe_tells_slow_phases_from_noise():
    phases = simulated(0.001, slow_every=0.4)
    assert phases.verdict == "usable"
    assert phases.drift_pct == pytest.approx(20, abs=2)
    assert phases.ratio_error_pct < 1


def test_probe_calls_a_machine_noisy_where_ratios_fail():
    draw = random.Random(0)
    now = 0.0

    def work():
        nonlocal now
        now += 2e7 * (1 + draw.random())

    found = probe_noise(2.0, clock=lambda: int(now), work=work)
    assert found.verdict == "noisy"
    assert found.disturbed_pct > 50


def test_probe_runs_on_this_machine():
    assert probe_noise(0.1).windows == 5
