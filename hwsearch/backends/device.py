"""Where a number comes from: chip, instruction sets, runtime. Figures of different devices never mix."""

from __future__ import annotations

import functools
import platform
from typing import Any

from hwsearch.types import Device

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "neon")
"""Instruction sets that decide which kernels run, as Linux names them."""

_ALIASES = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx512bf16": "avx512_bf16", "asimd": "neon"}


@functools.cache
def _cpu_facts() -> dict[str, Any]:
    import cpuinfo

    try:
        return dict(cpuinfo.get_cpu_info())
    except Exception:  # noqa: BLE001  (the library raises bare Exception on processors it does not know)
        return {}


def chip_name() -> str:
    """The processor's name as it reports it, or ``unknown``."""
    return str(_cpu_facts().get("brand_raw") or platform.processor() or platform.machine() or "unknown")


def chip_isa() -> tuple[str, ...]:
    """Which of `ISA_FLAGS` the processor has."""
    flags = {_ALIASES.get(flag, flag) for flag in _cpu_facts().get("flags", ())}
    return tuple(flag for flag in ISA_FLAGS if flag in flags)


def cpu_device(backend: str, version: str, threads: int, options: dict[str, str]) -> Device:
    """The fingerprint of this machine's processor under a runtime.

    Args:
        backend: Name of the backend.
        version: Of its runtime.
        threads: Intra-op threads.
        options: Everything else set in the runtime that changes its speed or its numbers.
    """
    return Device(
        backend=backend,
        backend_version=version,
        chip=chip_name(),
        isa=chip_isa(),
        threads=threads,
        options=options,
    )


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(chip_isa())


def saturates_int8() -> bool:
    """Whether uint8 × int8 products are summed in 16 bits: x86 with AVX2 or AVX-512 but without VNNI or AMX."""
    isa = set(chip_isa())
    return "avx2" in isa and isa.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})
