"""n-bit values in int8 containers: what a device with narrow integers would compute."""

import numpy as np
import onnx
import pytest

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.simulated import SimulatedBackend
from hwsearch.errors import EvaluationError
from hwsearch.testing import BackendContract
from hwsearch.types import TensorRange

MODEL = onnx.parser.parse_model("""
<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 1, 4, 4] input) => (float[N, 3] output)
<float[2, 1, 1, 1] conv_weight = {1.0, -0.6}, float[2] conv_bias = {0.0, 0.0},
 float[3] head_bias = {0.0, 0.0, 0.0}>
{
  [conv] hidden = Conv (input, conv_weight, conv_bias)
  active = Relu (hidden)
  flat = Flatten (active)
  [head] output = Gemm <transB = 1> (flat, head_weight, head_bias)
}
""")
WEIGHT = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)


def model():
    copy = onnx.ModelProto()
    copy.CopyFrom(MODEL)
    for tensor in list(copy.graph.initializer):
        if tensor.name == "head_weight":
            copy.graph.initializer.remove(tensor)
    copy.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "head_weight"))
    return copy


def outputs(tmp_path, precision, inputs):
    backend = SimulatedBackend()
    ranges = {"input": TensorRange(low=-1.0, high=1.0), "flat": TensorRange(low=0.0, high=1.0)}
    lowered = backend.lower(model(), LowerRequest(precision=precision, ranges=ranges))
    options = RunOptions(batch=len(inputs))
    return backend.open(backend.build(lowered, tmp_path, options), options).run(inputs)


def rounded(values, low, high, bits):
    steps = 2**bits - 1
    scale = (high - low) / steps
    zero = round(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, steps) - zero) * scale


def narrow(weight, bits):
    levels = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=1, keepdims=True) / levels
    return np.rint(weight / scale) * scale


@pytest.mark.parametrize(("name", "bits"), [("int2", 2), ("int4", 4), ("int8", 8)])
def test_a_linear_layer_computes_with_values_of_that_width(tmp_path, name, bits):
    inputs = np.random.default_rng(1).uniform(-1, 1, (5, 1, 4, 4)).astype(np.float32)
    found = outputs(tmp_path, {"conv": "fp32", "head": name}, inputs)
    hidden = np.maximum(np.concatenate([inputs, -0.6 * inputs], axis=1), 0).reshape(5, 32)
    expected = rounded(hidden, 0.0, 1.0, bits) @ narrow(WEIGHT, bits).T
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_fewer_bits_mean_more_error(tmp_path):
    inputs = np.random.default_rng(1).uniform(-1, 1, (64, 1, 4, 4)).astype(np.float32)
    exact = outputs(tmp_path, {"conv": "fp32", "head": "fp32"}, inputs)
    errors = [
        np.abs(outputs(tmp_path, {"conv": name, "head": name}, inputs) - exact).mean()
        for name in ("int8", "int4", "int2")
    ]
    assert errors[0] < errors[1] < errors[2]


def test_what_ran_is_marked_as_simulated():
    times = SimulatedBackend().inspect(None, {"conv": "int4"}, RunOptions())
    assert [(t.requested, t.executed, t.ms) for t in times] == [("int4", "simulated int4", None)]
    assert times[0].format == times[0].requested


def test_a_format_nobody_simulates_is_refused():
    with pytest.raises(EvaluationError, match="bf16"):
        SimulatedBackend().lower(model(), LowerRequest(precision={"conv": "bf16"}))


class TestContract(BackendContract):
    unsupported = "bf16"

    def check_unit(self, time, precision):
        assert time.executed == f"simulated {precision[time.source_layers[0]]}"
        assert time.ms is None

    @pytest.fixture
    def backend(self):
        return SimulatedBackend()
