"""Energy from a made-up folder of counters, wrap-around included; and nothing where there are none."""

import json

import onnx
import pytest

from hwsearch.backends.energy import Powercap, measure_energy
from hwsearch.cli.main import main
from hwsearch.testing.networks import plain


class Machine:
    """A powercap folder whose counters follow a clock: 5 W idle, 20 W while computing, over two packages."""

    MOST = 40_000_000  # µJ: begins again every few seconds

    def __init__(self, root):
        self.root, self.now, self.spent = root, 0.0, 29.0  # J
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl-mmio:0"):
            (root / name).mkdir()
            (root / name / "max_energy_range_uj").write_text(f"{self.MOST}\n")
        self._write()

    def sleep(self, seconds):
        self._pass(seconds, 5.0)

    def step(self):
        self._pass(0.01, 20.0)

    def clock(self):
        return self.now

    def _pass(self, seconds, watts):
        self.now += seconds
        self.spent += watts * seconds
        self._write()

    def _write(self):
        for name, share in (("intel-rapl:0", 0.75), ("intel-rapl:1", 0.25), ("intel-rapl:0:0", 0.5)):
            (self.root / name / "energy_uj").write_text(f"{round(share * self.spent * 1e6) % self.MOST}\n")


def test_energy_is_net_of_idle_and_survives_a_wrap(tmp_path):
    machine = Machine(tmp_path)
    meter = Powercap.find(tmp_path)
    assert len(meter.zones) == 2, "parts of a package, and unreadable counters, do not count"
    found = measure_energy(machine.step, 4, meter, seconds=2.0, clock=machine.clock, sleep=machine.sleep)
    assert found.idle_watts == pytest.approx(5.0, rel=1e-4)
    assert found.total_joules == pytest.approx(20 * 0.01 / 4, rel=1e-4)
    assert found.joules == pytest.approx(15 * 0.01 / 4, rel=1e-4)
    assert machine.spent * 0.75 > 40, "the counter has begun again"


def test_a_counter_that_began_again(tmp_path):
    Machine(tmp_path)
    meter = Powercap.find(tmp_path)
    assert meter.joules((39_000_000, 0), (1_000_000, 500_000)) == pytest.approx(2.5)


def test_nothing_is_made_up_where_there_is_no_counter(tmp_path):
    assert Powercap.find(tmp_path) is None
    assert measure_energy(lambda: None, 1, None) is None


@pytest.mark.skipif(Powercap.find() is not None, reason="this machine has counters")
def test_the_command_line_says_null(tmp_path, capsys):
    path = tmp_path / "model.onnx"
    onnx.save(plain(), path)
    assert main(["benchmark", str(path), "--energy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["energy"] == {"model.onnx": None}
