"""Where the energy of a candidate comes from: the device's counters, or the rates of a device that is not here.

Nobody is asked unless the study wants energy. A target answers in one of the two ways and never in both, so measured
and modelled energy share no front.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hwsearch.backends.base import energy_meter, get_backend
from hwsearch.backends.worker import Worker
from hwsearch.config import StudyConfig
from hwsearch.errors import BackendUnavailableError
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.roofline import roofline_mj
from hwsearch.model.graph import Network
from hwsearch.search.run_options import latency_options
from hwsearch.space.profile import TABLE
from hwsearch.types import Artifact, Candidate, Energy, Target

EnergySource = Callable[[Candidate, Artifact], Energy | None]
"""Answers for a candidate and its artifact, which can be opened."""

MODELLED = "modelled"


def check_energy(target: Target) -> None:
    """Make sure that energy can be told for `target`.

    Raises:
        BackendUnavailableError: nothing counts it here, and no rates of the device are known.
    """
    if target.backend == TABLE and not (target.roofline and target.roofline.pj_per_mac):
        raise BackendUnavailableError(
            f"the study asks for energy, and nothing is known of that of `{target.name}`",
            hint="give `roofline.pj_per_mac` and `pj_per_byte` in its file, or leave energy out of the study",
        )
    if target.backend != TABLE and energy_meter(get_backend(target.backend)) is None:
        raise BackendUnavailableError(
            f"the study asks for energy, and nothing counts that of `{target.name}` here",
            where="limits.energy_mj, or energy among the objectives",
            hint="processors: /sys/class/powercap/intel-rapl:*/energy_uj must be there and readable; NVIDIA GPUs: "
            "pip install nvidia-ml-py; or leave energy out of the study",
        )


def energy_source(network: Network, target: Target, config: StudyConfig, logs: Path) -> EnergySource:
    """What answers for `target` as the study asks; what runtimes print goes to a file in the folder `logs`."""
    if not config.wants_energy:
        return lambda _candidate, _artifact: None
    if target.backend == TABLE:
        units = NetworkUnits(network.source, network.template, quantizer_rule(target))
        return lambda candidate, _artifact: _modelled(target, units, candidate)

    def counted(candidate: Candidate, artifact: Artifact) -> Energy | None:
        options, seconds = latency_options(target, candidate.float_precision), config.measure.seconds
        memory = config.search.memory_mb * 2**20
        with Worker(target.backend, options, memory_bytes=memory, log=logs / "energy.log") as worker:
            return worker.energy(artifact, options, seconds=seconds, timeout_s=config.search.timeout_s + 4 * seconds)

    return counted


def _modelled(target: Target, units: NetworkUnits, candidate: Candidate) -> Energy | None:
    assert target.roofline is not None
    found = roofline_mj(target.roofline, units.counts(candidate))
    return None if found is None else Energy(net_mj=found, ci95_mj=(found, found), source=MODELLED)
