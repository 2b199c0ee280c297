"""The only way from a candidate to a model: prune, repair, fold, bind into the ONNX template exported once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.compress.prune import pruned
from hwsearch.compress.reconstruct import Reconstructor, Selection, Settings
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.compress.sparsify import copy_zeros
from hwsearch.model.graph import Network
from hwsearch.model.template import folded_parameters
from hwsearch.store import atomic_write
from hwsearch.types import Candidate, CompressedModel, LayerInfo

Repair = Literal["least_squares", "batch_norm", "none"]


def stitch(
    network: Network,
    candidate: Candidate,
    path: Path,
    *,
    calibration: NDArray[np.float32],
    repair: Repair = "least_squares",
    selection: Selection = "obs",
    reconstructor: Reconstructor | None = None,
    refit_images: int | None = None,
) -> CompressedModel:
    """Write the candidate's float ONNX file to `path` and describe it.

    Args:
        network: The traced original; left unchanged.
        candidate: What to keep, drop and compute in.
        path: Where the file goes.
        calibration: Images [N, ...] to repair with.
        repair: What is done about the damage of pruning: sequential least squares, statistics of batch norms estimated
            again, or nothing beyond the compensated weights that come with `selection`.
        selection: How channels are chosen, ``obs`` or ``magnitude``.
        reconstructor: What candidates of one network share, made by the caller with `calibration` and `selection`;
            without it, all of it is computed for this candidate alone.
        refit_images: How many images least squares looks at, at most; None for the reconstructor's own number.
    """
    reconstructor = reconstructor or Reconstructor(network, calibration, settings=Settings(selection=selection))
    parameters = parameters_of(
        network, candidate, reconstructor, calibration=calibration, repair=repair, refit_images=refit_images
    )
    return bind(network, candidate, parameters, path)


def bind(
    network: Network, candidate: Candidate, parameters: Mapping[str, NDArray[np.float32]], path: Path
) -> CompressedModel:
    """Write the float ONNX file of a candidate with these (folded) parameters to `path` and describe it."""
    source = network.source
    branches = [branch for branch in source.branches if branch.name in candidate.dropped]
    model = network.template.without_branches(branches).bind(parameters)
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


def parameters_of(
    network: Network,
    candidate: Candidate,
    reconstructor: Reconstructor,
    *,
    calibration: NDArray[np.float32],
    repair: Repair = "least_squares",
    refit_images: int | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Parameters of a candidate, batch norm folded, as the template takes them; arguments as for `stitch`."""
    folded = network.template.folded
    if candidate.complete:
        return folded_parameters(network.module, folded)
    if repair == "least_squares":
        return folded_parameters(reconstructor.repaired(candidate, images=refit_images), {})
    if repair == "none":
        return folded_parameters(reconstructor.stitched(candidate), {})
    module = pruned(network.module, network.source, candidate, reconstructor.select(candidate.keep), folded)
    copy_zeros(reconstructor.stitched(candidate), module, candidate.pattern)
    reestimate_batch_norm(module, calibration)
    return folded_parameters(module, folded)


def _positions(layer: LayerInfo) -> int:
    """How often a layer applies its whole weight to one example."""
    positions = layer.out_shape[:-1] if layer.op == "linear" else layer.out_shape[1:]
    return math.prod(positions)
