"""What to ship and why, in plain words, from the facts alone."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from hwsearch.config import LimitsConfig
from hwsearch.report.view import Units
from hwsearch.search.pareto import intervals_overlap

WORTH_SHIPPING = 0.99
"""Share of the fp32 metric a model must keep when the study sets no limits (the usual 99 % of MLPerf Inference)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A recommendation.

    Attributes:
        headline: One sentence: which model, its numbers, against the baselines.
        reason: The rule it follows, and what the numbers rest on.
        key: Of the recommended candidate; None if there is nothing to recommend.
    """

    headline: str
    reason: str
    key: str | None


def verdict(evaluations: pd.DataFrame, units: Units, limits: LimitsConfig) -> Verdict:
    """The model to ship by the study's limits, else the fastest that keeps 99 % of fp32.

    A searched model is recommended over uniform int8 only if it is faster or better by more than the noise.
    """
    final = evaluations[evaluations["final"].astype(bool)]
    pool = final if len(final) else evaluations
    rule = _rule(limits, units)
    if pool.empty:
        return Verdict(headline="No evaluation has succeeded yet.", reason="See the failures below.", key=None)
    allowed = _allowed(pool, units, limits)
    basis = _basis(pool, bool(len(final)))
    if allowed.empty:
        return Verdict(headline="No model meets the limits.", reason=f"Rule: {rule}. {basis}", key=None)
    best = _best(allowed, units, limits)
    rival = _rival(pool)
    if rival is not None and rival["key"] not in set(allowed["key"]):
        rule += f", which uniform {rival['baseline']} misses"
        rival = None
    unbeaten = rival is not None and (rival["key"] == best["key"] or not _beats(best, rival, units))
    best = rival if unbeaten and rival is not None else best
    headline = _headline(best, pool, units, unbeaten=unbeaten)
    reason = f"Rule: {rule}. {_more_careful(best, pool, units)}{basis}"
    return Verdict(headline=headline, reason=reason, key=str(best["key"]))


def _rule(limits: LimitsConfig, units: Units) -> str:
    wanted = []
    if limits.latency_ms is not None:
        wanted.append(f"at most {limits.latency_ms:g} ms")
    if limits.size_mb is not None:
        wanted.append(f"at most {limits.size_mb:g} MB")
    if limits.energy_mj is not None:
        wanted.append(f"at most {limits.energy_mj:g} mJ")
    if limits.accuracy_drop_points is not None:
        wanted.append(f"at most {limits.accuracy_drop_points:g} points worse than fp32")
    if _limits_cost(limits):
        return f"the best {units.label} with {', '.join(wanted)}"
    keeps = f"within {100 * (1 - WORTH_SHIPPING):.0f} % of the {units.label} of fp32"
    return f"the fastest model {wanted[0] if wanted else keeps}"


def _limits_cost(limits: LimitsConfig) -> bool:
    """Whether something other than accuracy is limited."""
    return any(limit is not None for limit in (limits.latency_ms, limits.size_mb, limits.energy_mj))


def _allowed(pool: pd.DataFrame, units: Units, limits: LimitsConfig) -> pd.DataFrame:
    feasible: pd.DataFrame = pool[pool["feasible"].astype(bool)]
    fp32 = _baseline(pool, "fp32")
    if fp32 is None or limits.model_dump(exclude_none=True):
        return feasible
    loss = (float(fp32["accuracy"]) - feasible["accuracy"].astype(float)) * (1 if units.higher_is_better else -1)
    return feasible.loc[loss <= (1 - WORTH_SHIPPING) * abs(float(fp32["accuracy"]))]


def _best(allowed: pd.DataFrame, units: Units, limits: LimitsConfig) -> pd.Series:
    if not _limits_cost(limits):
        return allowed.sort_values("latency_ms").iloc[0]
    return allowed.sort_values(["accuracy", "latency_ms"], ascending=[not units.higher_is_better, True]).iloc[0]


def _rival(pool: pd.DataFrame) -> pd.Series | None:
    """The setting anyone would try first: uniform int8, or the fastest baseline other than fp32."""
    others = pool[pool["baseline"].notna() & (pool["baseline"] != "fp32")].sort_values("latency_ms")
    int8 = _baseline(pool, "int8")
    return int8 if int8 is not None else (None if others.empty else others.iloc[0])


def _baseline(pool: pd.DataFrame, name: str) -> pd.Series | None:
    found = pool[pool["baseline"] == name]
    return None if found.empty else found.iloc[0]


def _beats(one: pd.Series, other: pd.Series, units: Units) -> bool:
    """Whether `one` is faster or better than `other` by more than their intervals."""
    faster = one["latency_high"] < other["latency_low"]
    if pd.isna(one["accuracy_low"]) or pd.isna(other["accuracy_low"]):
        return bool(faster)
    if units.higher_is_better:
        return bool(faster or one["accuracy_low"] > other["accuracy_high"])
    return bool(faster or one["accuracy_high"] < other["accuracy_low"])


def _headline(best: pd.Series, pool: pd.DataFrame, units: Units, *, unbeaten: bool) -> str:
    numbers = f"{best['latency_ms']:.3f} ms at {units.show(best['accuracy'])} {units.label}"
    parts = [
        numbers,
        *(_against(best, row, units) for row in (_baseline(pool, "fp32"), _rival(pool)) if row is not None),
    ]
    text = ", ".join(part for part in parts if part)
    if unbeaten:
        return f"Nothing beats uniform {best['baseline']}: {text}."
    return f"Ship {_name(best)}: {text}."


def _more_careful(best: pd.Series, pool: pd.DataFrame, units: Units) -> str:
    """What to ship if almost nothing may be lost, where `best` loses more; empty otherwise."""
    keeping = _allowed(pool, units, LimitsConfig())
    if keeping.empty or best["key"] in set(keeping["key"]):
        return ""
    row = _best(keeping, units, LimitsConfig())
    numbers = f"{row['latency_ms']:.3f} ms at {units.show(row['accuracy'])}"
    return f"The fastest within {100 * (1 - WORTH_SHIPPING):.0f} % of fp32: {_name(row)}, {numbers}. "


def _name(row: pd.Series) -> str:
    return f"uniform {row['baseline']}" if row["baseline"] else str(row["key"])


def _against(best: pd.Series, base: pd.Series, units: Units) -> str:
    """How `best` compares with a baseline in speed and, for fp32, in the metric; empty against itself."""
    if best["key"] == base["key"]:
        return ""
    name = "fp32" if base["baseline"] == "fp32" else f"uniform {base['baseline']}"
    mine, theirs = (best["latency_low"], best["latency_high"]), (base["latency_low"], base["latency_high"])
    ratio = base["latency_ms"] / best["latency_ms"]
    if intervals_overlap(mine, theirs):
        speed = f"as fast as {name} within the noise"
    else:
        speed = f"{ratio:.2f}× faster than {name}" if ratio > 1 else f"{1 / ratio:.2f}× slower than {name}"
    return speed if name != "fp32" else f"{speed}, {_difference(best, base, units)}"


def _difference(best: pd.Series, base: pd.Series, units: Units) -> str:
    gain = units.factor * (best["accuracy"] - base["accuracy"])
    digits = 1 if units.suffix else units.decimals
    if round(abs(gain), digits) == 0:
        return f"as accurate as {base['baseline']}"
    side = "above" if gain > 0 else "below"
    unit = f" {units.points}" if units.suffix else ""
    return f"{abs(gain):.{digits}f}{unit} {side} {base['baseline']}"


def _basis(pool: pd.DataFrame, final: bool) -> str:
    if final:
        return (
            f"Measured again together ({len(pool)} models with the baselines) "
            "and scored on the report split, which the search never saw."
        )
    return "Finalists have not been measured again yet; numbers the search picked itself look better than they are."
