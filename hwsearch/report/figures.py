"""Every figure of a report: pure functions from facts (`frames`, `layer_frames`) to plotly figures."""

from hwsearch.report.agreement import agreement
from hwsearch.report.importance import importance
from hwsearch.report.layer_maps import layer_channels, layer_formats
from hwsearch.report.layer_time import layer_latency
from hwsearch.report.search_figures import hypervolume, parallel, stage_time
from hwsearch.report.sensitivity import sensitivity_map
from hwsearch.report.tradeoff import pareto

__all__ = [
    "agreement",
    "hypervolume",
    "importance",
    "layer_channels",
    "layer_formats",
    "layer_latency",
    "parallel",
    "pareto",
    "sensitivity_map",
    "stage_time",
]
