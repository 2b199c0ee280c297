"""The only way from a candidate to a model: prune, repair, fold, bind into the ONNX template exported once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.compress.prune import pruned
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.model.graph import Network
from hwsearch.model.template import folded_parameters
from hwsearch.store import atomic_write
from hwsearch.types import Candidate, CompressedModel, LayerInfo


def stitch(
    network: Network,
    candidate: Candidate,
    path: Path,
    *,
    calibration: NDArray[np.float32],
    batch_norm: bool = True,
) -> CompressedModel:
    """Write the candidate's float ONNX file to `path` and describe it.

    Args:
        network: The traced original; left unchanged.
        candidate: What to keep, drop and compute in.
        path: Where the file goes.
        calibration: Images [N, ...] for repairing statistics.
        batch_norm: Re-estimate batch-norm statistics if the candidate is pruned.
    """
    source, template = network.source, network.template
    module = network.module
    if candidate.keep or candidate.dropped:
        original = folded_parameters(network.module, template.folded)
        module = pruned(network.module, source, candidate, original, template.folded)
        if batch_norm:
            reestimate_batch_norm(module, calibration)
    branches = [branch for branch in source.branches if branch.name in candidate.dropped]
    model = template.without_branches(branches).bind(folded_parameters(module, template.folded))
    onnx.helper.set_model_props(model, {"hwsearch.key": candidate.key})
    with atomic_write(path) as stream:
        stream.write(model.SerializeToString())
    # Linear layers on more than two axes are stored transposed; sizes and counts do not depend on it.
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = [source.layer(name) for name in candidate.precision]
    weights = [tensors[f"{layer.name}.weight"] for layer in layers]
    biases = [tensors[name] for layer in layers if (name := f"{layer.name}.bias") in tensors]
    return CompressedModel(
        candidate_key=candidate.key,
        path=str(path),
        precision=candidate.precision,
        params=sum(tensor.size for tensor in (*weights, *biases)),
        nonzero=sum(int(np.count_nonzero(tensor)) for tensor in (*weights, *biases)),
        macs=sum(weight.size * _positions(layer) for weight, layer in zip(weights, layers, strict=True)),
    )


def _positions(layer: LayerInfo) -> int:
    """How often a layer applies its whole weight to one example."""
    positions = layer.out_shape[:-1] if layer.op == "linear" else layer.out_shape[1:]
    return math.prod(positions)
