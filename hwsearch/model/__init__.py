"""The network and its data: loading, tracing, the ONNX template, splits, metrics, training."""
