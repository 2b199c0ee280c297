"""What stays when only weights change: operations, their order, shapes and number formats."""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx

from hwsearch.types import Artifact


def structure(artifact: Artifact) -> str:
    """A digest of everything in a model file but the values of its weights and scales.

    Two artifacts with the same structure run the same kernels on the same shapes.
    """
    path = next((Path(file) for file in artifact.files if file.endswith((".onnx", ".xml"))), Path(artifact.path))
    lines = _of_ir(path) if path.suffix == ".xml" else _of_onnx(path)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _of_onnx(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    nodes = [node.SerializeToString(deterministic=True).hex() for node in graph.node]
    tensors = [f"{tensor.name} {tensor.data_type} {list(tensor.dims)}" for tensor in graph.initializer]
    return [*nodes, *tensors]


def _of_ir(path: Path) -> list[str]:
    """Layers with attributes and shapes, and the edges between them; where a constant lies in the file may differ."""
    root = ET.parse(path).getroot()  # noqa: S314 - a file of a bundle whose hashes have been checked
    for data in root.iter("data"):
        data.attrib.pop("offset", None)
    for layer in root.iter("layer"):
        if layer.get("type") == "Const":  # numbered by whatever the process did before
            layer.attrib.pop("name", None)
    return [
        ET.tostring(part, encoding="unicode")
        for group in ("layers", "edges")
        for found in root.iter(group)
        for part in found
    ]
