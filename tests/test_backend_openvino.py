import pytest

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.device import has_bf16
from hwsearch.errors import EvaluationError
from hwsearch.testing import BackendContract
from hwsearch.testing.contract import assign, build, request_for
from hwsearch.testing.networks import concat, layer_names, residual

pytest.importorskip("openvino")

from hwsearch.backends.openvino import OpenVinoBackend
from hwsearch.backends.openvino_session import core


class TestOpenVinoBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        return OpenVinoBackend()

    def check_unit(self, time, precision):
        super().check_unit(time, precision)
        if time.source_layers and time.kind != "Subgraph":
            assert time.executed == time.requested
            assert time.ms is not None


def fake_quantized(model, precision):
    backend = OpenVinoBackend()
    lowered = backend.lower(model, request_for(backend, model, precision))
    return {node.input[0]: node for node in lowered.graph.node if node.op_type == "FakeQuantize"}


def test_both_sides_of_a_residual_addition_are_quantised():
    found = fake_quantized(residual(), assign("int8", layer_names(residual())))
    assert {"a.conv2_out", "b.conv2_out", "b.shortcut_out"} <= set(found)


def test_quantisers_stand_before_what_only_moves_values():
    found = fake_quantized(residual(), assign("int8", layer_names(residual())))
    pooled = next(node for node in residual().graph.node if node.op_type == "MaxPool")
    flat = next(node for node in residual().graph.node if node.op_type == "Flatten")
    assert pooled.input[0] in found
    assert pooled.output[0] not in found
    assert flat.input[0] in found
    assert flat.output[0] not in found


def test_what_a_concat_joins_has_one_scale():
    model = concat()
    joined = next(node for node in model.graph.node if node.op_type == "Concat")
    found = fake_quantized(model, assign("int8", layer_names(model)))
    backend = OpenVinoBackend()
    lowered = backend.lower(model, request_for(backend, model, assign("int8", layer_names(model))))
    values = {tensor.name: tensor for tensor in lowered.graph.initializer}
    limits = [[values[limit].raw_data for limit in found[name].input[1:3]] for name in joined.input]
    assert limits[0] == limits[1]


def test_ir_keeps_the_key_and_full_precision_weights(tmp_path):
    model = residual()
    artifact = build(OpenVinoBackend(), model, assign("fp32", layer_names(model)), tmp_path)
    loaded = core().read_model(artifact.path)
    assert loaded.get_rt_info(["hwsearch", "key"]).astype(str) == "0123456789ab"
    types = {port.get_element_type().get_type_name() for op in loaded.get_ops() for port in op.outputs()}
    assert "f16" not in types


def test_bf16_runs_where_the_processor_has_it_and_is_refused_elsewhere(tmp_path):
    model = residual()
    backend = OpenVinoBackend()
    precision = assign("bf16", layer_names(model))
    lowered = backend.lower(model, LowerRequest(precision=precision))
    options = RunOptions(float_precision="bf16")
    if not has_bf16():
        with pytest.raises(EvaluationError, match="bf16"):
            backend.build(lowered, tmp_path, options)
        return
    times = backend.inspect(backend.build(lowered, tmp_path, options), precision, options)
    assert {time.executed for time in times if time.kind == "Convolution"} == {"bf16"}


def test_two_float_formats_in_one_model_are_refused():
    model = residual()
    precision = assign("fp32", layer_names(model)) | {"stem": "bf16"}
    with pytest.raises(EvaluationError, match="bf16 and fp32"):
        OpenVinoBackend().lower(model, LowerRequest(precision=precision))
