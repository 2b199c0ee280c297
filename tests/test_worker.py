"""The worker against backends that work, crash, hang, take all memory and write to standard output."""

import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.benchmark import benchmark
from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import Worker
from hwsearch.errors import BackendUnavailableError, ConfigError, EvaluationError

REQUEST = LowerRequest(precision={"conv1": "int8"})
QUICK = TimingPolicy(rounds=10, min_rounds=6, seconds=0.2, half_width=0.05)


@pytest.fixture
def model(tmp_path):
    """An ONNX file whose graph's name is all that the test backends read."""
    return save_model(tmp_path / "quick.onnx", "quick")


def save_model(path, speed):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], speed, [value], [value])
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def worker(backend="Working", *, cpus=(), **keywords):
    return Worker(f"worker_backends:{backend}", RunOptions(cpus=cpus), policy=QUICK, **keywords)


def failure(backend, model, tmp_path, *, timeout_s=60, **keywords):
    """The error of a misbehaving build, after checking that the worker still works."""
    with worker(backend, **keywords) as one:
        with pytest.raises(EvaluationError) as caught:
            one.build(model, REQUEST, tmp_path / "artifact", timeout_s=timeout_s)
        assert one.device().backend == "working"
    return caught.value


def ended(pid, within_s=10):
    """Whether a process that need not be our child has ended (zombies have)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    readable, _, _ = select.select([descriptor], [], [], within_s)
    os.close(descriptor)
    return bool(readable)


# --------------------------------------------------------------------------- what it is for


def test_build_predict_inspect(model, tmp_path):
    inputs, outputs = tmp_path / "in.npy", tmp_path / "out.npy"
    examples = np.arange(21, dtype=np.float64).reshape(7, 3)
    np.save(inputs, examples)
    with worker() as one:
        artifact = one.build(model, REQUEST, tmp_path / "artifact", timeout_s=60)
        one.predict(artifact, inputs, outputs, batch=4, timeout_s=60)
        layers = one.inspect(artifact, {"conv1": "int8"}, timeout_s=60)
    found = np.load(outputs)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * examples)
    assert [(layer.runtime_layer, layer.requested) for layer in layers] == [("conv1!", "int8")]


def test_build_uses_the_options_given_and_clears_what_a_killed_run_left(model, tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "half-written").touch()
    with worker() as one:
        bf16 = RunOptions(float_precision="bf16")
        artifact = one.build(model, REQUEST, tmp_path / "artifact", timeout_s=60, options=bf16)
    assert [path.name for path in (tmp_path / "artifact").iterdir()] == ["model.txt"]
    assert (tmp_path / "artifact" / "model.txt").read_text() == "quick bf16"
    assert artifact.files == (artifact.path,)


def test_measure_ranks_and_compares_with_the_reference(tmp_path):
    options = RunOptions(batch=2)
    with worker() as one:
        artifacts = {
            speed: (
                one.build(save_model(tmp_path / f"{speed}.onnx", speed), REQUEST, tmp_path / speed, timeout_s=60),
                options,
            )
            for speed in ("quick", "slow")
        }
        found = one.measure(artifacts, reference="quick", timeout_s=60)
    assert found["slow"].batch == 2
    assert found["slow"].reference_ms == found["quick"].best_ms
    assert found["slow"].ratio > 1 == found["quick"].ratio


def test_a_model_that_cannot_be_opened_need_not_end_a_campaign(model, tmp_path):
    with worker() as one:
        artifact = one.build(model, REQUEST, tmp_path / "good", timeout_s=60), RunOptions()
        broken = one.build(save_model(tmp_path / "x.onnx", "broken"), REQUEST, tmp_path / "bad", timeout_s=60)
        models = {"bad": (broken, RunOptions()), "good": artifact}
        assert set(one.measure(models, partial=True, timeout_s=60)) == {"good"}
        for hopeless in (models, {"bad": models["bad"]}):
            with pytest.raises(EvaluationError, match="broken"):
                one.measure(hopeless, partial=len(hopeless) == 1, timeout_s=60)


def test_parent_sleeps_while_the_child_measures(model, tmp_path):
    policy = TimingPolicy(rounds=10_000, min_rounds=10_000, seconds=1.0)
    with Worker("worker_backends:Working", RunOptions(), policy=policy) as one:
        artifact = one.build(model, REQUEST, tmp_path / "artifact", timeout_s=60)
        before = resource.getrusage(resource.RUSAGE_SELF)
        one.measure({"a": (artifact, RunOptions())}, timeout_s=60)
        after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.2  # the study measures it: about 0.01; a parent that polls takes 1


def test_child_is_pinned_and_free_of_torch(tmp_path):
    core = max(os.sched_getaffinity(0))
    with worker(cpus=(core,)) as one:
        assert one.device().options == {"cpus": f"[{core}]", "torch": "False"}


def test_benchmark_tells_models_apart(tmp_path):
    models = [save_model(tmp_path / f"{name}.onnx", name) for name in ("quick", "slow", "quick")]
    said = []
    result = benchmark(models, "worker_backends:Working", RunOptions(), QUICK, said.append)
    names = [row.name for row in result.rows]
    assert names[1] == "slow.onnx"
    assert names[0] != names[2]
    first, slow, again = result.rows
    assert first.against_first is None
    assert (slow.against_first.verdict, again.against_first.verdict) == ("slower", "tied")
    assert set(result.samples) == set(names)
    assert len(said) == 4


@pytest.mark.parametrize("name", ["gone.onnx", "notes.txt"])
def test_benchmark_refuses_what_is_no_model(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=name):
        benchmark([tmp_path / name], "worker_backends:Working", RunOptions())


# --------------------------------------------------------------------------- what goes wrong


def test_crash(model, tmp_path):
    error = failure("Segfaulting", model, tmp_path)
    assert (error.stage, error.kind, error.message) == ("build", "crash", "the worker was killed by SIGSEGV")
    assert "about to fail" in error.log
    assert "Segmentation fault" in error.log


def test_exit(model, tmp_path):
    error = failure("Exiting", model, tmp_path)
    assert (error.kind, error.message) == ("crash", "the worker exited with code 3")


def test_kill_without_much_memory_is_a_crash(model, tmp_path):
    assert failure("Killed", model, tmp_path).kind == "crash"


def test_hang_ends_with_all_processes_it_started(model, tmp_path):
    error = failure("Hanging", model, tmp_path, timeout_s=1)
    assert (error.stage, error.kind) == ("build", "timeout")
    assert "1 s" in error.message
    assert ended(int((tmp_path / "artifact" / "pid").read_text()))


def test_memory_limit(model, tmp_path):
    error = failure("Greedy", model, tmp_path, memory_bytes=2**29)
    assert (error.stage, error.kind) == ("build", "memory")
    assert "537 MB" in error.message


def test_native_out_of_memory(model, tmp_path):
    error = failure("NativeGreedy", model, tmp_path)
    assert (error.kind, "SIGABRT" in error.message) == ("memory", True)


def test_exception_comes_back_by_name_in_one_line_with_its_trace(model, tmp_path):
    error = failure("Raising", model, tmp_path)
    assert (error.stage, error.kind, error.message) == ("build", "ValueError", "layer `conv1` has no kernel")
    assert "Traceback" in error.log


def test_a_backends_own_error_keeps_its_facts(model, tmp_path):
    error = failure("Refusing", model, tmp_path)
    assert (error.stage, error.kind, error.message, error.hint) == ("lower", "invalid", "no bf16 here", "use fp32")


def test_standard_output_cannot_forge_replies_and_is_logged(model, tmp_path):
    log = tmp_path / "logs" / "worker.log"
    with worker("Chatty", log=log) as one:
        for number in range(2):
            assert one.build(model, REQUEST, tmp_path / str(number), timeout_s=60).format == "text"
    assert {f"forged by {way}" in log.read_text() for way in ("print", "write", "puts", "a child")} == {True}


def test_log_holds_only_the_failing_call(model, tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("from another run\n")
    assert "another run" not in failure("Segfaulting", model, tmp_path, log=log).log


def test_missing_runtime_says_how_to_install_it():
    with worker("Absent") as one, pytest.raises(BackendUnavailableError, match="no such runtime") as caught:
        one.device()
    assert caught.value.hint == "pip install runtime"


def test_unknown_backend_is_a_configuration_error():
    with Worker("onnxruntimee", RunOptions()) as one, pytest.raises(ConfigError, match="onnxruntimee"):
        one.device()


def test_core_that_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match="core 4096"):
        Worker("worker_backends:Working", RunOptions(cpus=(4096,)))


# --------------------------------------------------------------------------- life and death


def test_child_that_dies_between_calls_is_replaced():
    with worker() as one:
        first = int(one.device().chip)
        os.kill(first, signal.SIGKILL)
        assert ended(first)
        assert int(one.device().chip) != first


def test_worker_outlives_the_thread_that_started_it():
    with worker() as one:
        thread = threading.Thread(target=one.device)
        thread.start()
        thread.join()
        assert one.device().backend == "working"


def test_interrupt_ends_the_call_and_the_child_and_the_worker_can_be_used_again(model, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with worker("Hanging") as one:
            first = int(one.device().chip)
            assert os.getsid(first) == first  # a terminal's Ctrl-C does not reach it
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                one.build(model, REQUEST, tmp_path / "artifact", timeout_s=60)
            assert ended(first)
            assert int(one.device().chip) != first
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_closing_ends_the_child():
    with worker() as one:
        pid = int(one.device().chip)
    assert ended(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_busy_child_dies_with_a_killed_parent(model, tmp_path):
    program = f"""
from pathlib import Path
from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.worker import Worker
with Worker("worker_backends:Hanging", RunOptions()) as one:
    print(one.device().chip, flush=True)
    one.build(Path({str(model)!r}), LowerRequest(precision={{}}), Path({str(tmp_path / "artifact")!r}), timeout_s=60)
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=path)
    child = int(parent.stdout.readline())
    while not (tmp_path / "artifact" / "pid").exists():
        time.sleep(0.01)
    parent.kill()
    parent.communicate()
    assert ended(child)
    os.kill(int((tmp_path / "artifact" / "pid").read_text()), signal.SIGKILL)
