"""``hwsearch doctor``: what this machine can run, and how far its timings can be trusted."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Annotated, Any

import typer

from hwsearch import __version__
from hwsearch.backends.base import Backend, RunOptions, backend_names, get_backend
from hwsearch.backends.device import chip_isa, chip_name
from hwsearch.backends.energy import Powercap
from hwsearch.backends.environment import probe_noise, read_environment
from hwsearch.cli.output import flags, next_step, note, print_facts, print_json, print_table, print_text
from hwsearch.cli.verb import verb
from hwsearch.errors import BackendUnavailableError, HwSearchError
from hwsearch.space.target import load_target
from hwsearch.types import to_json

ADVICE = {
    "quiet": "differences above the ratio error are real",
    "usable": "compare ratios of one campaign, not milliseconds measured apart",
    "noisy": "stop other work, or measure elsewhere",
}
PACKAGES = ("torch", "onnx", "optuna", "numpy", "plotly", "torch-pruning")

Seconds = Annotated[float, typer.Option("--seconds", metavar="S", min=0, help="length of the noise probe; 0 skips it")]

Wanted = Annotated[str | None, typer.Option("--target", metavar="TARGET", help="a target that must run here")]


@verb
def doctor(seconds: Seconds = 5.0, *, target: Wanted = None) -> None:
    """Say which backends work here, what the device is, and how noisy its timings are.

    With a target, first whether that one can run here; exit code 3 if not.
    """
    if target is not None:
        _demand(target)
    facts = gather(seconds)
    if flags().json:
        print_json(facts)
        return
    print_table(["backend", "version", "", "device or what to do"], [_backend_cells(b) for b in facts["backends"]])
    for title in ("machine", "versions", "noise"):
        print_text(f"\n{title}")
        print_facts({f"  {name}": _words(value) for name, value in (facts[title] or {"probe": "skipped"}).items()})
    note("\n".join(f"warning: {warning}" for warning in facts["warnings"]))
    next_step("hwsearch", "demo")


def _demand(name: str) -> None:
    """Refuse to go on where a target cannot run."""
    available = get_backend(load_target(name).backend).availability()
    if not available.ok:
        raise BackendUnavailableError(f"target `{name}` cannot run here: {available.problem}", hint=available.install)


def gather(seconds: float) -> dict[str, Any]:
    """Everything doctor knows, JSON-ready; a part that cannot be found out is None, never an error."""
    return {
        "backends": [_backend(name) for name in backend_names()],
        "machine": _machine(),
        "versions": {"hwsearch": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "noise": _noise(seconds) if seconds else None,
        "warnings": list(read_environment().warnings()),
    }


def _backend(name: str) -> dict[str, Any]:
    """Whether a backend works, its device and the formats it runs; what to install when it does not."""
    try:
        backend = get_backend(name)
        available = backend.availability()
        facts = {"name": name, "ok": available.ok, "version": available.version}
        if not available.ok:
            return facts | {"problem": available.problem, "install": available.install, "device": None}
        return facts | {"problem": None, "install": None, "device": _device(backend)}
    except HwSearchError as error:
        return {
            "name": name,
            "ok": False,
            "version": None,
            "problem": error.message,
            "install": error.hint,
            "device": None,
        }


def _device(backend: Backend) -> dict[str, Any]:
    device = backend.device(RunOptions())
    return {"key": device.key, **to_json(device)}


def _noise(seconds: float) -> dict[str, Any]:
    noise = probe_noise(seconds)
    return {**to_json(noise), "advice": ADVICE[noise.verdict]}


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    settings = to_json(read_environment())
    return {
        "chip": chip_name(),
        "isa": list(chip_isa()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False),
        "energy_counters": "powercap" if Powercap.find() else "none that may be read",
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        **settings,
        "HWSEARCH_DATA": os.environ.get("HWSEARCH_DATA"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _backend_cells(backend: dict[str, Any]) -> list[str]:
    device = backend["device"]
    detail = f"{device['chip']}  [{device['key']}]" if device else f"{backend['problem']}; {backend['install'] or ''}"
    return [backend["name"], backend["version"] or "", "ok" if backend["ok"] else "missing", detail]


def _words(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.2f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
