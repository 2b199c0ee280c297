"""Models as they are handed to TensorRT, in every precision and pattern of precisions."""

from onnx import numpy_helper

from hwsearch.backends.tensorrt_qdq import PRECISIONS, lower, tensors_to_observe
from hwsearch.testing.contract import CALIBRATION, reference
from hwsearch.types import TensorRange

MIXED = {"int8 and fp16": ("int8", "fp16"), "fp8 and bf16": ("fp8", "bf16"), "fp32 and fp16": ("fp32", "fp16")}
PATTERNS = (*(name for name in PRECISIONS if name != "w4a16"), *MIXED)


def pattern(name, layers):
    cycle = MIXED.get(name, (name,))
    return {layer: cycle[i % len(cycle)] for i, layer in enumerate(layers)}


def lowered(model, precision, *, width=None):
    """The model lowered with ranges it was seen to have, or with [-width, width] for all tensors."""
    names = tensors_to_observe(model, precision)
    if width is not None:
        return lower(model, precision, {name: TensorRange(low=-width, high=width) for name in names})
    seen = reference(model, CALIBRATION)
    ranges = {name: TensorRange(low=float(seen[name].min()), high=float(seen[name].max())) for name in names}
    return lower(model, precision, ranges)


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantised(model):
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
