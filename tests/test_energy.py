"""Energy from a made-up folder of counters, wrap-around included, into a search's front; nothing without counters."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from counting_backend import EXTRA_WATTS, Counters
from hypothesis import given
from hypothesis import strategies as st
from tensorrt_bindings import compile_library
from test_front import point, searched
from tiny_search import DATA, QUICK, TARGET, TinyNet

from hwsearch.backends.energy import Powercap, measure_energy
from hwsearch.cli.main import main
from hwsearch.config import make_study
from hwsearch.errors import BackendUnavailableError, ConfigError
from hwsearch.latency.kernels import CALL, Kind
from hwsearch.latency.roofline import roofline_mj
from hwsearch.report.frames import evaluations
from hwsearch.search.api import search
from hwsearch.search.front import choose, tied, undominated
from hwsearch.search.prepare import ready_target
from hwsearch.space.target import load_target
from hwsearch.testing.fakes import SECONDS_PER_CALL, SECONDS_PER_MAC
from hwsearch.testing.networks import plain
from hwsearch.types import Energy, Roofline


class Machine(Counters):
    """Counters that follow a clock: 5 W idle, 20 W while computing, over two packages."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds
        self.count(5.0 * seconds)

    def step(self):
        self.now += 0.01
        self.count(20.0 * 0.01)

    def clock(self):
        return self.now


def test_energy_is_net_of_idle_and_survives_a_wrap(tmp_path):
    machine = Machine(tmp_path, 29.0)
    meter = Powercap.find(tmp_path)
    assert len(meter.zones) == 2, "parts of a package, and unreadable counters, do not count"
    found = measure_energy(machine.step, 4, meter, seconds=2.0, clock=machine.clock, sleep=machine.sleep)
    assert found.idle_watts == pytest.approx(5.0, rel=1e-4)
    assert found.total_mj == pytest.approx(20 * 10 / 4, rel=1e-4)
    assert found.net_mj == pytest.approx(15 * 10 / 4, rel=1e-4)
    assert found.ci95_mj == pytest.approx((37.5, 37.5), rel=1e-3)
    assert machine.joules * 0.75 > 40, "the counter has begun again"


def test_an_uneven_device_has_a_wide_interval(tmp_path):
    machine = Machine(tmp_path, 0.0)
    extra = iter(range(10**6))
    found = measure_energy(
        lambda: (machine.step(), machine.count(1e-4 * next(extra))), 1, Powercap.find(tmp_path),
        seconds=0.5, clock=machine.clock, sleep=machine.sleep,
    )  # fmt: skip
    assert found.ci95_mj[0] < found.net_mj - 1
    assert found.ci95_mj[1] > found.net_mj + 1


def test_a_counter_that_began_again(tmp_path):
    Counters(tmp_path, 1.0)
    meter = Powercap.find(tmp_path)
    assert meter.joules((39_000_000, 0), (1_000_000, 500_000)) == pytest.approx(2.5)


def test_nothing_is_made_up_where_there_is_no_counter(tmp_path):
    assert Powercap.find(tmp_path) is None


def test_the_counter_of_a_gpu_is_found_by_its_address(tmp_path):
    """By NVIDIA's own Python package, over a library that stands in for its driver's."""
    pytest.importorskip("pynvml")
    compile_library(Path(__file__).parent / "nvml_stand_in.c", tmp_path / "libnvidia-ml.so.1")
    code = (
        "from hwsearch.backends.energy import Nvml\n"
        "meter = Nvml.find('0000:01:00.0'); before = meter.read()\n"
        "print(meter.joules(before, meter.read()), Nvml.find('0000:02:00.0'))"
    )
    paths = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert found.stdout == "1.5 None\n", found.stderr


@pytest.mark.skipif(Powercap.find() is not None, reason="this machine has counters")
def test_the_command_line_says_null(tmp_path, capsys):
    path = tmp_path / "model.onnx"
    onnx.save(plain(), path)
    assert main(["benchmark", str(path), "--energy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["energy"] == {"model.onnx": None}
    assert main(["doctor", "--seconds", "0"]) == 0
    assert "none that may be read" in capsys.readouterr().out


# --------------------------------------------------------------------------- in a search


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A search that wants energy, on a machine that counts it."""
    folder = tmp_path_factory.mktemp("counted")
    target = folder / "counting.yaml"
    target.write_text(TARGET.replace("hwsearch.testing:FakeBackend", "counting_backend:CountingBackend"))
    wanted = {"objectives": ("accuracy", "latency", "energy"), "limits": {"energy_mj": LIMIT_MJ}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MADE_UP_POWERCAP", str(folder / "powercap"))
        return search(
            TinyNet(), data=DATA, target=str(target), out=folder, name="counted", evaluations=2,
            search={"sampler": "tpe"}, measure=QUICK, **wanted,
        ).run  # fmt: skip


MACS = {"stem": 64 * 8 * 9, "branch": 64 * 8 * 8 * 9, "head": 24}


def expected_mj(precision):
    """What the made-up machine takes for the whole network in one format."""
    return 1e3 * EXTRA_WATTS * (SECONDS_PER_CALL + sum(MACS.values()) * SECONDS_PER_MAC[precision])


LIMIT_MJ = (expected_mj("fp32") + expected_mj("int8")) / 2


def test_a_search_records_energy_and_keeps_its_limit(run):
    found = {trial.baseline: trial.outcome.energy for trial in run.trials}
    assert {energy.source for energy in found.values()} == {"powercap"}
    for name in ("fp32", "int8"):
        assert found[name].net_mj == pytest.approx(expected_mj(name), rel=0.2)
    wide, narrow = (next(t for t in run.trials if t.baseline == name) for name in ("fp32", "int8"))
    assert wide.constraints["energy_mj"] == pytest.approx(found["fp32"].net_mj - LIMIT_MJ)
    assert (wide.feasible, narrow.feasible) == (False, True)
    assert run.trials[0].seconds["energy"] > 0


def test_energy_flows_into_front_frames_and_tables(run, capsys):
    assert all(point.energy.source == "powercap" for point in run.front.points)
    assert run.front.objectives == ("accuracy", "latency", "energy")
    frame = evaluations(run).set_index("baseline")
    assert frame.loc["fp32", "energy_source"] == "powercap"
    assert frame.loc["fp32", "status"] == "infeasible"
    assert frame.loc["fp32", "violations"].keys() == {"energy_mj"}
    assert run.to_frame().loc[0, "energy_mj"] == run.trials[0].outcome.energy.net_mj
    assert main(["front", str(run.path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {p["energy"]["source"] for p in printed["baselines"]} == {"powercap"}
    assert main(["front", str(run.path)]) == 0
    assert "mJ" in capsys.readouterr().out
    assert main(["show", str(run.path), run.trials[0].candidate.key]) == 0
    assert "energy mJ (powercap)" in capsys.readouterr().out


def test_a_search_goes_on_only_with_the_same_objectives(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MADE_UP_POWERCAP", str(run.path.parents[1] / "powercap"))
    with pytest.raises(ConfigError, match="another set of objectives"):
        search(
            TinyNet(), data=DATA, target=str(run.path.parents[1] / "counting.yaml"), out=run.path.parents[1],
            name="counted", evaluations=3, search={"sampler": "tpe"}, measure=QUICK,
            objectives=("accuracy", "latency", "size"),
        )  # fmt: skip


# --------------------------------------------------------------------------- without counters


@pytest.mark.parametrize("asked", [{"limits": {"energy_mj": 1.0}}, {"objectives": ["accuracy", "latency", "energy"]}])
def test_a_study_that_wants_energy_where_nothing_counts_it_is_refused(asked, tmp_path, capsys):
    target = tmp_path / "fake.yaml"
    target.write_text(TARGET)
    study = make_study({"model": "a.py:b", "data": "digits", "target": str(target), **asked})
    with pytest.raises(BackendUnavailableError, match="nothing counts that of `fake` here"):
        ready_target(str(target), study)
    with pytest.raises(BackendUnavailableError, match="nothing is known of that of `arm-neon`"):
        ready_target("arm-neon", study)
    path = tmp_path / "study.yaml"
    settings = {"model": "hwsearch.zoo.resnet:resnet20", "data": "digits", "target": str(target), **asked}
    path.write_text(json.dumps(settings))
    assert main(["search", str(path), "--out", str(tmp_path / "runs")]) == 3
    assert "nothing counts" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_limit_of_a_target_is_asked_for_as_the_studys_own(tmp_path):
    target = tmp_path / "fake.yaml"
    target.write_text(TARGET + "limits: {energy_mj: 2}\n")
    study = make_study({"model": "a.py:b", "data": "digits", "target": str(target)})
    with pytest.raises(BackendUnavailableError, match="nothing counts"):
        ready_target(str(target), study)


# --------------------------------------------------------------------------- modelled


ROOF = Roofline(
    origin="", macs_per_us={"int8": 1.0}, bytes_per_us=1.0, layer_us=0.0, call_us=0.0,
    pj_per_mac={"int8": 2.0}, pj_per_byte=100.0,
)  # fmt: skip


def test_a_roofline_knows_energy_only_where_it_has_rates():
    conv, add = Kind("conv", "3x3/2", "8x8", "int8"), Kind("Add", "", "8x8", "fp32")
    units = {(CALL, (1, 1)): 1, (conv, (4, 6)): 2, (add, (4, 4)): 1}
    picojoules = 2 * (2 * 16 * 9 * 4 * 6 + 100 * (64 * 4 + 16 * 6 + 9 * 4 * 6)) + 100 * 64 * 8 * 4
    assert roofline_mj(ROOF, units) == pytest.approx(picojoules / 1e9)
    assert roofline_mj(dataclasses.replace(ROOF, pj_per_mac={}), units) is None


def test_modelled_energy_is_labelled(tmp_path):
    study = {"objectives": ("accuracy", "latency", "energy"), "search": {"sampler": "tpe"}, "tables": str(tmp_path)}
    found = search(TinyNet(), data=DATA, target="npu-4bit", out=tmp_path, name="modelled", evaluations=2, **study).run
    energies = {trial.baseline: trial.outcome.energy for trial in found.trials}
    assert {energy.source for energy in energies.values()} == {"modelled"}
    assert energies["int8"].net_mj < energies["fp32"].net_mj
    assert load_target("npu-4bit").roofline.pj_per_mac.keys() == {"fp32", "int8", "int4"}


# --------------------------------------------------------------------------- on a front


def needs(point, mj, half=0.0):
    return dataclasses.replace(point, energy=Energy(net_mj=mj, ci95_mj=(mj - half, mj + half), source="powercap"))


def test_a_point_that_takes_less_energy_beyond_the_noise_stays_on_the_front():
    good, frugal = point("good", 900, 1.0), point("frugal", 700, 2.0)
    assert undominated([needs(good, 5.0, 0.5), needs(frugal, 3.0, 0.5)]) == {"good", "frugal"}
    assert undominated([needs(good, 5.0, 1.5), needs(frugal, 3.0, 1.5)]) == {"good"}, "within the noise"
    twins = needs(point("frugal", 901, 1.0), 3.0, 0.5), needs(point("other", 900, 1.0), 5.0, 0.5)
    assert not tied(*twins)
    assert undominated(twins) == {"frugal"}


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=8))
def test_finalists_are_what_nothing_beats_in_accuracy_latency_and_energy(costs):
    trials = []
    for number, (loss, ms, mj) in enumerate(costs):
        trial = searched(1 - loss / 10, float(ms), number)
        energy = Energy(net_mj=float(mj), ci95_mj=(float(mj), float(mj)), source="powercap")
        trials.append(dataclasses.replace(trial, outcome=dataclasses.replace(trial.outcome, energy=energy)))
    chosen = {trial.number for trial in choose(trials)}

    def beaten(mine):
        return any(all(map(int.__le__, other, mine)) and other != mine for other in costs)

    assert chosen == {number for number, mine in enumerate(costs) if not beaten(mine)}
