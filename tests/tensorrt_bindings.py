"""NVIDIA's real Python bindings of TensorRT over libraries that stand in for its own, ready for a child process.

The wheels of the bindings are small and on the package index; the libraries they link to are not here. The bindings
import once three libraries export the handful of entry points they name. Which classes, methods, members and signatures
exist is then NVIDIA's own answer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

FOLDER = "HWSEARCH_TENSORRT_BINDINGS"
VERSIONS = {"10.16": "10.16.1.11", "11.4": "11.4.0.106"}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
HERE = Path(__file__).parent


def wheel(pattern: str) -> Path:
    """The downloaded wheel that matches; skips where there is none."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        pytest.skip(f"{FOLDER} is unset: `.ci/run` downloads the wheels and names their folder")
    found = sorted(Path(folder).glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {folder}: the package index has none for this Python and machine")
    return found[-1]


def compiler() -> str:
    """A C compiler; skips where there is none."""
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("there is no C compiler to build the libraries that stand in for NVIDIA's")
    return found


def unpack_bindings(version: str, folder: Path) -> None:
    """The package ``tensorrt`` of a version in `folder`, importable."""
    with zipfile.ZipFile(wheel(f"tensorrt_cu13_bindings-{VERSIONS[version]}-*.whl")) as archive:
        archive.extractall(folder)
    (folder / "tensorrt_bindings").rename(folder / "tensorrt")
    major = version.partition(".")[0]
    for name in LIBRARIES:
        compile_library(HERE / "tensorrt_entry_points.c", folder / "tensorrt" / f"lib{name}.so.{major}")


def install_device(folder: Path) -> None:
    """Let Python processes that see `folder` and the variable STANDIN_DEVICE work with the device that is not there."""
    (folder / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('STANDIN_DEVICE'):\n    from tensorrt_device import install\n    install()\n"
    )


def build_driver(folder: Path) -> None:
    """``libcuda.so.1`` with one device that is not there, compiled against NVIDIA's own header."""
    with zipfile.ZipFile(wheel("nvidia_cuda_runtime-*.whl")) as archive:
        header = next(name for name in archive.namelist() if name.endswith("/cuda.h"))
        (folder / "cuda.h").write_bytes(archive.read(header))
    compile_library(HERE / "cuda_driver.c", folder / "libcuda.so.1", f"-I{folder}")


def compile_library(source: Path, target: Path, *options: str) -> None:
    """A shared library whose name is that of its file."""
    command = [compiler(), "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run([*command, f"-Wl,-soname,{target.name}", "-o", str(target), str(source)], check=True)
