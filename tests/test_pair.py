"""Two devices on one batch: who takes how much, and what they reach together."""

import json
import threading
import time

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.backends.base import RunOptions
from hwsearch.backends.environment import usable_cores
from hwsearch.backends.openvino_devices import PROPERTIES, measure_shared, several_devices
from hwsearch.backends.openvino_session import core
from hwsearch.backends.pair import best_split, measure_pair, pair_on_cores
from hwsearch.cli.main import main
from hwsearch.errors import BackendUnavailableError
from hwsearch.testing.networks import plain


def sleeper(seconds_per_example):
    """A device that computes by sleeping, and refuses two calls at once."""
    busy = threading.Lock()

    def run(count):
        assert busy.acquire(blocking=False), "called twice at once"
        time.sleep(count * seconds_per_example)
        busy.release()

    return run


def test_a_pair_of_devices_reaches_nearly_the_sum_of_both():
    found = measure_pair(sleeper(0.001), sleeper(0.004), 40, seconds=0.3)
    assert found.split == (32, 8)
    assert found.efficiency >= 0.85


@given(batch=st.integers(2, 200), rates=st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)))
def test_no_other_split_is_done_sooner(batch, rates):
    def makespan(count):
        return max(count / rates[0], (batch - count) / rates[1])

    assert makespan(best_split(batch, rates)) == min(map(makespan, range(batch + 1)))
    assert makespan(best_split(batch, rates)) <= min(makespan(0), makespan(batch))


def test_what_a_device_raises_is_raised():
    def broken(count):
        time.sleep(count * 0.001)
        if count < 4:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure_pair(broken, sleeper(0.001), 4, seconds=0.01)


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_two_pinned_sessions_share_a_batch(tmp_path, capsys):
    path = tmp_path / "model.onnx"
    onnx.save(plain(), path)
    options = tuple(RunOptions(cpus=(core,)) for core in usable_cores()[-2:])
    found = pair_on_cores(path, ("onnxruntime", "onnxruntime"), options, 32, seconds=0.1)
    assert sum(found.split) == 32
    assert min(found.alone) > 0
    assert found.together > 0
    assert main(["benchmark", str(path), str(path), "--pair", "ort-cpu", "--json"]) == 2
    assert "one model" in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.parametrize("way", PROPERTIES)
def test_openvino_shares_a_batch_among_its_devices(way, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(plain(), path)
    found = measure_shared(path, way, ["CPU"], 20, seconds=0.05)  # the one device that is always there
    assert found.alone.keys() == {"CPU"}
    assert found.efficiency == pytest.approx(found.together / found.alone["CPU"])


def test_openvino_with_one_device_says_what_to_do_instead(tmp_path, capsys):
    if len(core().available_devices) > 1:
        pytest.skip("OpenVINO sees several devices here")
    path = tmp_path / "model.onnx"
    onnx.save(plain(), path)
    with pytest.raises(BackendUnavailableError, match="AUTO shares work among devices, and sees one here: CPU"):
        several_devices("auto")
    assert main(["benchmark", str(path), "--target", "openvino-cpu", "--pair", "hetero"]) == 3
    assert "two sessions" in capsys.readouterr().err
    assert main(["benchmark", str(path), "--pair", "auto"]) == 2  # ONNX Runtime has no such thing
