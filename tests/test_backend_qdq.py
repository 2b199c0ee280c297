import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from hwsearch.backends.qdq import asymmetric, output_axis, quantize_weight, symmetric
from hwsearch.backends.readback import ABSENT, complete, layer_time
from hwsearch.backends.rewrite import Graph
from hwsearch.testing.contract import assign
from hwsearch.testing.fakes import FakeBackend
from hwsearch.testing.networks import Builder
from hwsearch.types import TensorRange

finite = st.floats(-1e6, 1e6, width=32)


def round_trip(values, quantizer):
    limits = np.iinfo(quantizer.dtype)
    stored = np.clip(np.rint(values / quantizer.scale) + quantizer.zero_point, limits.min, limits.max)
    return (stored - quantizer.zero_point) * quantizer.scale


@pytest.mark.parametrize("method", [asymmetric, symmetric])
@given(one=finite, other=finite)
def test_quantisers_cover_their_interval_and_hold_zero_exactly(method, one, other):
    low, high = min(one, other), max(one, other)
    quantizer = method(TensorRange(low=low, high=high))
    assert round_trip(np.array(0.0), quantizer) == 0
    values = np.linspace(low, high, 50)
    assert np.all(np.abs(round_trip(values, quantizer) - values) <= 1.001 * quantizer.scale)


@given(high=st.floats(1e-3, 1e6))
def test_nothing_negative_means_no_zero_point_and_all_of_uint8(high):
    for method in (asymmetric, symmetric):
        quantizer = method(TensorRange(low=0.0, high=high))
        assert (quantizer.zero_point, quantizer.dtype) == (0, np.uint8)
        assert quantizer.scale == pytest.approx(high / 255)


@given(
    weight=arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)),
    axis=st.sampled_from([0, 1]),
    levels=st.sampled_from([127, 64]),
)
def test_weights_are_rounded_to_the_nearest_step_of_their_channel(weight, axis, levels):
    stored, scale = quantize_weight(weight, axis, levels)
    shaped = scale.reshape((-1, 1) if axis == 0 else (1, -1))
    assert np.abs(stored).max() <= levels
    assert np.all(scale > 0)
    assert np.all(np.abs(stored * shaped - weight) <= 0.5001 * shaped)


def test_a_channel_of_zeros_may_have_a_large_bias():
    net = Builder()
    model = net.finish((1, 4, 4), net.conv("layer", "input", 1, 2), (2, 4, 4))
    graph = Graph(model)
    graph.store("layer.weight", np.zeros((2, 1, 3, 3), np.float32))
    graph.store("layer.bias", np.array([5e4, -1e-4], np.float32))
    backend = FakeBackend()
    request = {"precision": assign("int8", ["layer"]), "ranges": {"input": TensorRange(low=0.0, high=1e-3)}}
    from hwsearch.backends.base import LowerRequest, RunOptions
    from hwsearch.testing.fakes import FakeSession

    lowered = backend.lower(graph.finish(), LowerRequest(**request))
    outputs = FakeSession(lowered, RunOptions()).run(np.zeros((1, 1, 4, 4), np.float32))
    np.testing.assert_allclose(outputs[0, :, 0, 0], [5e4, -1e-4], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "attributes", "axis"),
    [("Conv", {}, 0), ("ConvTranspose", {}, 1), ("Gemm", {"transB": 1}, 0), ("Gemm", {}, 1), ("MatMul", {}, 1)],
)
def test_axis_of_the_output_channels(kind, attributes, axis):
    assert output_axis(helper.make_node(kind, ["x", "w"], ["y"], **attributes)) == axis


def test_layers_that_cannot_be_traced_are_listed_as_absent():
    precision = {"one": "int8", "two": "fp32"}
    known = layer_time(
        runtime_layer="k", kind="Conv", source_layers=["one"], precision=precision, executed="int8", ms=1.0
    )
    times = complete([known], precision)
    assert times[0] == known
    assert [(time.kind, time.source_layers, time.requested, time.executed) for time in times[1:]] == [
        (ABSENT, ("two",), "fp32", None)
    ]
