import onnx
import pytest

from hwsearch.backends.base import RunOptions
from hwsearch.backends.worker import Worker
from hwsearch.errors import EvaluationError
from hwsearch.testing import BackendContract, CrashingBackend, FailingBackend, FakeBackend
from hwsearch.testing.contract import assign, build, request_for
from hwsearch.testing.fakes import layer_macs
from hwsearch.testing.networks import layer_names, residual


class TestFakeBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        return FakeBackend()


def test_multiply_accumulates_follow_shapes_and_batch():
    macs = layer_macs(residual(), 1)
    assert macs["stem"] == 3 * 9 * 16 * 16 * 16
    assert macs["b.shortcut"] == 16 * 32 * 4 * 4
    assert macs["head"] == 32 * 10
    assert layer_macs(residual(), 3) == {name: 3 * value for name, value in macs.items()}


def test_a_narrower_format_weighs_and_takes_less(tmp_path):
    backend, model = FakeBackend(), residual()
    found = {}
    for name in ("fp32", "int8"):
        precision = assign(name, layer_names(model))
        artifact = build(backend, model, precision, tmp_path / name)
        times = backend.inspect(artifact, precision, RunOptions())
        found[name] = (artifact.size_bytes, sum(time.ms for time in times))
    assert found["int8"][0] < 0.6 * found["fp32"][0]
    assert found["int8"][1] == pytest.approx(0.4 * found["fp32"][1])


def test_failing_backend_refuses_every_model(tmp_path):
    with pytest.raises(EvaluationError, match="refuses every model"):
        build(FailingBackend(), residual(), assign("fp32", layer_names(residual())), tmp_path)


def test_crashing_backend_spares_uniform_models(tmp_path):
    model = residual()
    backend = CrashingBackend()
    for name in ("fp32", "int8"):
        build(backend, model, assign(name, layer_names(model)), tmp_path / name)
    lowered = backend.lower(model, request_for(backend, model, assign("alternating", layer_names(model))))
    onnx.checker.check_model(lowered)


@pytest.mark.parametrize(
    ("name", "kind"), [("CrashingBackend", "crash"), ("SlowBackend", "timeout"), ("MemoryHogBackend", "memory")]
)
def test_misbehaving_backends_fail_by_name_in_a_child_process(name, kind, tmp_path):
    model = residual()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    request = request_for(FakeBackend(), model, assign("alternating", layer_names(model)))
    with Worker(f"hwsearch.testing:{name}", RunOptions(), memory_bytes=2**32) as worker:
        with pytest.raises(EvaluationError) as caught:
            worker.build(path, request, tmp_path / "artifact", timeout_s=3)
        assert caught.value.kind == kind
