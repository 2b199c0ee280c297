"""Hardware-aware search: the fastest deployable models at every accuracy, measured on your device.

    import hwsearch as hs
    study = hs.search(model, data=data, metric="top1", target="ort-cpu")
    best = study.front().pick(max_latency_ms=0.4)
    hs.export(best, "out/")

The public names are loaded on first use: importing the package is quick and needs none of its heavy dependencies.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwsearch import adapt, reparam
    from hwsearch.backends.base import Backend
    from hwsearch.backends.benchmark import benchmark
    from hwsearch.config import StudyConfig, load_study
    from hwsearch.errors import HwSearchError
    from hwsearch.export.bundle import export
    from hwsearch.export.verify import verify
    from hwsearch.model.load import load_model
    from hwsearch.report.html import write_report as report
    from hwsearch.report.images import figure
    from hwsearch.report.tables import to_frames
    from hwsearch.search.api import Study, compress, search
    from hwsearch.search.compression import Goals
    from hwsearch.search.run import Run
    from hwsearch.types import Front, SearchSpace, Target

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Front",
    "Goals",
    "HwSearchError",
    "Run",
    "SearchSpace",
    "Study",
    "StudyConfig",
    "Target",
    "adapt",
    "benchmark",
    "compress",
    "export",
    "figure",
    "load_model",
    "load_study",
    "reparam",
    "report",
    "search",
    "to_frames",
    "verify",
]

_HOMES = {
    "Backend": "hwsearch.backends.base:Backend",
    "Front": "hwsearch.types:Front",
    "Goals": "hwsearch.search.compression:Goals",
    "HwSearchError": "hwsearch.errors:HwSearchError",
    "Run": "hwsearch.search.run:Run",
    "SearchSpace": "hwsearch.types:SearchSpace",
    "Study": "hwsearch.search.api:Study",
    "StudyConfig": "hwsearch.config:StudyConfig",
    "Target": "hwsearch.types:Target",
    "adapt": "hwsearch.adapt",
    "benchmark": "hwsearch.backends.benchmark:benchmark",
    "compress": "hwsearch.search.api:compress",
    "export": "hwsearch.export.bundle:export",
    "figure": "hwsearch.report.images:figure",
    "load_model": "hwsearch.model.load:load_model",
    "load_study": "hwsearch.config:load_study",
    "reparam": "hwsearch.reparam",
    "report": "hwsearch.report.html:write_report",
    "search": "hwsearch.search.api:search",
    "to_frames": "hwsearch.report.tables:to_frames",
    "verify": "hwsearch.export.verify:verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hwsearch' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


class _Package(ModuleType):
    """Keeps `search`, `compress`, `report` and `export` functions when the packages of the same name are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
