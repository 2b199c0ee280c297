"""What differs between bundles of different model formats: file names, the names of inputs, and how to run them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx

from hwsearch.errors import ConfigError
from hwsearch.store import sha256_files
from hwsearch.types import Artifact

KEY_NAME = "hwsearch.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a model format is shipped.

    Attributes:
        package: Import name of the runtime that ``infer.py`` uses.
        place: Writes the model's files into a folder under their shipped names, main file first.
        names: Names of the input and of the output, read from the main file.
    """

    package: str
    infer: str
    place: Callable[[Artifact, Path, str], list[Path]]
    names: Callable[[Path], tuple[str, str]]

    def program(self) -> str:
        """Text of the ``infer.py`` that runs this format."""
        return shipped_program(self.infer)

    def requirement(self, used: str) -> tuple[str, str]:
        """Distribution name and version of the runtime installed here; version `used` if it is no Python package."""
        try:
            return self.package, metadata.version(self.package)
        except metadata.PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
            distributions = metadata.packages_distributions().get(self.package)
        return (distributions[0], metadata.version(distributions[0])) if distributions else (self.package, used)


def shipped_program(name: str) -> str:
    """Text of a program that goes into bundles as it is."""
    return (resources.files("hwsearch.export.shipped") / name).read_text()


def format_of(artifact: Artifact) -> Format:
    """How to ship an artifact.

    Raises:
        ConfigError: no bundle is defined for its format.
    """
    try:
        return _FORMATS[artifact.format]
    except KeyError:
        raise ConfigError(
            f"models of format `{artifact.format}` cannot be exported yet", allowed=", ".join(_FORMATS)
        ) from None


def place_model(artifact: Artifact, folder: Path, key: str) -> Artifact:
    """Copy the model into a bundle, marked with its key where the format has room; paths relative to `folder`."""
    files = format_of(artifact).place(artifact, folder, key)
    return Artifact(
        path=files[0].name,
        files=tuple(file.name for file in files),
        format=artifact.format,
        sha256=sha256_files(files),
        size_bytes=sum(file.stat().st_size for file in files),
        portable=artifact.portable,
    )


def _place_onnx(artifact: Artifact, folder: Path, key: str) -> list[Path]:
    model = onnx.load(artifact.path)
    kept = [entry for entry in model.metadata_props if entry.key != KEY_NAME]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=KEY_NAME, value=key)])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [path]


def _place_copies(artifact: Artifact, folder: Path, key: str) -> list[Path]:  # noqa: ARG001 - one signature for all
    main = Path(artifact.path)
    ordered = [main, *(Path(file) for file in artifact.files if Path(file) != main)]
    return [shutil.copyfile(file, folder / f"model{file.suffix}") for file in ordered]


def _onnx_names(path: Path) -> tuple[str, str]:
    graph = onnx.load(path).graph
    return graph.input[0].name, graph.output[0].name


def _engine_names(path: Path) -> tuple[str, str]:
    return _onnx_names(path.with_suffix(".onnx"))


def _openvino_names(path: Path) -> tuple[str, str]:
    layers = list(ET.parse(path).getroot().iter("layer"))  # noqa: S314 - a file we have just written
    first = next(layer for layer in layers if layer.get("type") == "Parameter")
    last = next(layer for layer in layers if layer.get("type") == "Result")
    return first.get("name", ""), last.get("output_names") or last.get("name", "").split("/")[0]


_FORMATS = {
    "onnx": Format(package="onnxruntime", infer="infer_onnx.py", place=_place_onnx, names=_onnx_names),
    "openvino-ir": Format(package="openvino", infer="infer_openvino.py", place=_place_copies, names=_openvino_names),
    "tensorrt-engine": Format(package="tensorrt", infer="infer_tensorrt.py", place=_place_copies, names=_engine_names),
}
