import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwsearch.backends.base import RunOptions
from hwsearch.backends.onnxruntime import OnnxRuntimeBackend, observe
from hwsearch.backends.onnxruntime_qdq import lower
from hwsearch.errors import EvaluationError
from hwsearch.testing import BackendContract
from hwsearch.testing.contract import assign, build, examples, reference, request_for
from hwsearch.testing.networks import Builder, layer_names, residual


class TestOnnxRuntimeBackend(BackendContract):
    unsupported = "bf16"

    @pytest.fixture
    def backend(self):
        return OnnxRuntimeBackend()

    def check_unit(self, time, precision):
        super().check_unit(time, precision)
        if time.source_layers:
            assert time.executed == time.requested
            assert time.ms is not None


@pytest.fixture
def int8():
    model = residual()
    backend = OnnxRuntimeBackend()
    return backend.lower(model, request_for(backend, model, assign("int8", layer_names(model))))


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_activations_are_uint8_with_true_scalars_and_no_zero_point_after_relu(int8):
    values = initializers(int8)
    relus = {node.output[0] for node in int8.graph.node if node.op_type == "Relu"}
    quantized = [node for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert relus <= {node.input[0] for node in quantized}
    for node in quantized:
        scale, zero = values[node.input[1]], values[node.input[2]]
        assert scale.shape == zero.shape == ()
        assert zero.dtype == np.uint8
        assert zero == 0 or node.input[0] not in relus


def test_weights_are_int8_per_channel_and_biases_int32(int8):
    values = initializers(int8)
    for layer in layer_names(residual()):
        weight, scale = values[f"{layer}.weight_quantized"], values[f"{layer}.weight_scale"]
        assert weight.dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        assert np.all(np.abs(weight).reshape(len(weight), -1).max(axis=1) == 127)
        assert values[f"{layer}.bias_quantized"].dtype == np.int32


def test_every_reader_of_a_quantised_tensor_gets_the_dequantised_one(int8):
    readers = {}
    for node in int8.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            assert readers[node.input[0]] == ["QuantizeLinear"]


def test_chips_that_saturate_get_weights_of_seven_bits():
    model = residual()
    backend = OnnxRuntimeBackend()
    request = request_for(backend, model, assign("int8", layer_names(model)))
    values = initializers(lower(model, request.precision, request.ranges, levels=64))
    stored = [value for name, value in values.items() if name.endswith("weight_quantized")]
    assert {int(np.abs(value).max()) for value in stored} == {64}


def test_float_layers_behind_int8_layers_keep_their_weights(tmp_path):
    """ONNX Runtime rounds the weights of a plain Conv or Gemm behind a DequantizeLinear to int8 per tensor."""
    net = Builder()
    x = net.op("Relu", net.conv("quantized", "input", 3, 16))
    x = net.op("Relu", net.conv("float", x, 16, 16))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    model = net.finish((3, 8, 8), net.gemm("head", x, 16, 4), (4,))
    for tensor in model.graph.initializer:
        if tensor.name in ("float.weight", "head.weight"):
            weight = numpy_helper.to_array(tensor).copy()
            weight[0] *= 1000  # one scale for all channels would round the others to zero
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        if tensor.name == "head.weight":
            weight[:, 0] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    precision = {"quantized": "int8", "float": "fp32", "head": "fp32"}
    artifact = build(OnnxRuntimeBackend(), model, precision, tmp_path)
    outputs = OnnxRuntimeBackend().open(artifact, RunOptions(batch=4)).run(examples(model, 4))
    expected = reference(model, 4)["output"]
    np.testing.assert_allclose(outputs[:, 1:], expected[:, 1:], atol=0.02 * np.abs(expected[:, 1:]).max())


def test_bf16_is_refused_with_the_reason(tmp_path):
    model = residual()
    artifact = build(OnnxRuntimeBackend(), model, assign("fp32", layer_names(model)), tmp_path)
    with pytest.raises(EvaluationError, match="no bf16 kernels"):
        OnnxRuntimeBackend().open(artifact, RunOptions(float_precision="bf16"))


@pytest.fixture
def observed(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(residual(), path)
    return path


def test_observed_histograms_are_those_of_the_tensors(observed):
    names = ["input", "b.conv2_out", "output"]
    seen = observe(observed, names, examples(residual(), 40), bins=64)
    for name in names:
        values = reference(residual(), 40)[name]
        assert seen[name].low == pytest.approx(float(values.min()), abs=1e-5)
        assert seen[name].high == pytest.approx(float(values.max()), abs=1e-5)
        counts, _ = np.histogram(values, 64, range=(seen[name].low, seen[name].high))
        assert sum(seen[name].counts) == values.size
        assert np.abs(np.array(seen[name].counts) - counts).sum() <= 0.01 * values.size


def test_one_bin_holds_everything(observed):
    seen = observe(observed, ["stem_out"], examples(residual(), 5), bins=1)["stem_out"]
    assert seen.counts == (5 * 16 * 16 * 16,)
    assert seen.low < 0 < seen.high


def test_a_network_that_overflows_shows_in_its_range(observed):
    seen = observe(observed, ["stem_out"], np.full((2, 3, 16, 16), np.inf, np.float32), bins=16)["stem_out"]
    assert not np.isfinite(seen.low + seen.high)
