"""The only way from a candidate to a model: prune, repair, fold, bind into the ONNX template exported once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.compress.prune import pruned
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.model.graph import Network
from hwsearch.model.template import folded_parameters
from hwsearch.store import atomic_write
from hwsearch.types import Candidate, CompressedModel, LayerInfo, PruneGroup, SourceModel


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
    model = template.bind(folded_parameters(module, template.folded), dropped=branches)
    onnx.helper.set_model_props(model, {"hwsearch.key": candidate.key})
    with atomic_write(path) as stream:
        stream.write(model.SerializeToString())
    weights = _weights(model, candidate)
    return CompressedModel(
        candidate_key=candidate.key,
        path=str(path),
        precision=candidate.precision,
        params=sum(weight.size for weight in weights),
        nonzero=sum(int(np.count_nonzero(weight)) for weight in weights),
        macs=sum(_macs(layer, source, candidate) for layer in source.layers if layer.name in candidate.precision),
    )


def _weights(model: onnx.ModelProto, candidate: Candidate) -> list[NDArray[np.float32]]:
    names = {f"{layer}.{kind}" for layer in candidate.precision for kind in ("weight", "bias")}
    return [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in names]


def _macs(layer: LayerInfo, source: SourceModel, candidate: Candidate) -> int:
    """Multiply-accumulates left: the original's, scaled by the fractions of output and input channels kept."""
    macs = float(layer.macs)
    for group in source.groups:
        if group.name in candidate.keep:
            macs *= _fraction(layer, group, candidate.keep[group.name])
    return round(macs)


def _fraction(layer: LayerInfo, group: PruneGroup, keep: int) -> float:
    """Share of the layer's work that is left when the group keeps `keep` channels."""
    left = 1.0
    for axis in group.axes:
        if axis.module == layer.name and not (layer.op == "depthwise" and axis.side == "in"):
            shape = layer.out_shape if axis.side == "out" else layer.in_shape
            length = shape[0] if layer.op in ("conv", "depthwise") else shape[-1]
            left *= 1 - (group.channels - keep) * axis.repeat / length
    return left
