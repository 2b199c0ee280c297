"""``trtexec`` of TensorRT 10 and 11: commands for it, and what its files hold.

Defaults changed between the versions (in 11, CUDA graphs and spin-waiting are on and transfers are off), so everything
that matters is asked for by name. Options a version does not list in its help are left out: 11 is strongly typed
without being told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwsearch.backends.tensorrt_options import TensorRtOptions
from hwsearch.errors import EvaluationError

PROGRAM = "trtexec"
NEEDED = ("--onnx", "--saveEngine", "--loadEngine", "--skipInference", "--exportTimes", "--exportLayerInfo")
DEFAULTS_OF_11 = frozenset({"--stronglyTyped", "--useCudaGraph", "--useSpinWait", "--noDataTransfers"})
"""Asked for where the help lists them; elsewhere they are how the tool works."""

WARM_UP_MS, ITERATIONS = 200, 200

_BANNER = re.compile(r"TensorRT v(\d+(?:\.\d+)*)")
_OPTION = re.compile(r"(?<![\w-])(--[A-Za-z]\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One installed trtexec: its version, and the options its help lists."""

    version: str
    options: frozenset[str]

    def has(self, option: str) -> bool:
        """Whether the tool knows ``--name`` or ``--name=value``."""
        return option.partition("=")[0] in self.options

    def words(self, *options: str) -> list[str]:
        """A command with these options, without the defaults of 11 where the tool does not list them."""
        return [PROGRAM, *(word for word in options if self.has(word) or word not in DEFAULTS_OF_11)]


def read_help(text: str) -> Tool:
    """What ``trtexec --help`` says of itself.

    Raises:
        ValueError: it is not trtexec's help, or of a version too old.
    """
    banner = _BANNER.search(text)
    options = frozenset(_OPTION.findall(text))
    if banner is None:
        raise ValueError("it does not say its TensorRT version")
    missing = [name for name in NEEDED if name not in options]
    version = _version(banner.group(1))
    if missing or version.partition(".")[0] not in ("10", "11"):
        raise ValueError(f"TensorRT {version} is too old or too new" + (f": no {missing[0]}" if missing else ""))
    return Tool(version=version, options=options)


def _version(banner: str) -> str:
    """``101602`` is 10.16.2 and ``110100`` is 11.1.0; some builds print it with points."""
    if "." in banner:
        return banner
    number = int(banner)
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def build_command(
    tool: Tool, settings: TensorRtOptions, *, model: str, engine: str, cache: str, tf32: bool, sparse: bool
) -> list[str]:
    """Build an engine and do not run it."""
    options = [f"--onnx={model}", f"--saveEngine={engine}", f"--timingCacheFile={cache}", "--skipInference"]
    options += ["--stronglyTyped", "--profilingVerbosity=detailed", f"--memPoolSize=workspace:{settings.workspace_mb}"]
    return tool.words(*options, *(() if tf32 else ("--noTF32",)), *(("--sparsity=enable",) if sparse else ()))


def time_command(tool: Tool, settings: TensorRtOptions, *, engine: str, times: str) -> list[str]:
    """Run an engine many times and write each run's times.

    Raises:
        EvaluationError: this tool cannot time as the options ask.
    """
    if not tool.version.startswith("10.") and (settings.transfers or not settings.cuda_graph):
        raise EvaluationError(
            f"trtexec {tool.version} times CUDA graphs without transfers, and no option is known that changes it",
            stage="measure",
            kind="invalid",
            hint="leave cuda_graph on and transfers off in the target, or use the backend tensorrt",
        )
    asked = ["--useSpinWait"]
    asked += ["--useCudaGraph"] if settings.cuda_graph else []
    asked += [] if settings.transfers else ["--noDataTransfers"]
    counts = [f"--warmUp={WARM_UP_MS}", f"--iterations={ITERATIONS}", "--duration=0", "--avgRuns=1"]
    return tool.words(f"--loadEngine={engine}", f"--exportTimes={times}", *asked, *counts)


def infer_command(tool: Tool, *, engine: str, inputs: Mapping[str, str], outputs: str) -> list[str]:
    """Run an engine once on given inputs, raw float32 files by name, and write its outputs."""
    loaded = ",".join(f"{name}:{path}" for name, path in inputs.items())
    return tool.words(
        f"--loadEngine={engine}",
        f"--loadInputs={loaded}",
        f"--exportOutput={outputs}",
        "--iterations=1",
        "--duration=0",
        "--warmUp=0",
    )


def inspect_command(tool: Tool, *, engine: str, layers: str, profile: str) -> list[str]:
    """Run an engine with a profiler, and write its layers and their times."""
    return tool.words(
        f"--loadEngine={engine}",
        f"--exportLayerInfo={layers}",
        f"--exportProfile={profile}",
        "--iterations=20",
        "--duration=0",
    )


def read_times(document: Sequence[Mapping[str, float]], *, transfers: bool) -> list[int]:
    """Nanoseconds of every run in a file of ``--exportTimes``: computing alone, or copies as well."""
    key = "latencyMs" if transfers else "computeMs"
    return [round(entry[key] * 1e6) for entry in document]


def read_profile(document: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Layer -> milliseconds from a file of ``--exportProfile``, whose first entry only counts the runs."""
    return {entry["name"]: float(entry.get("medianMs", entry["averageMs"])) for entry in document if "name" in entry}


def read_output(document: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Values of one output from a file of ``--exportOutput``.

    Raises:
        EvaluationError: the file has no such output.
    """
    for entry in document:
        if entry["name"] == name:
            return [float(value) for value in entry["values"]]
    raise EvaluationError(f"trtexec wrote no output `{name}`", stage="accuracy", kind="tensorrt")
