"""The tables of README.md, out of results.json and forms.json."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from rounding import OPTIONS, named
from run import KINDS, RANGES, results
from scipy.stats import spearmanr
from scipy.stats import t as student

from hwsearch.store import read_json

HERE = Path(__file__).parent
PLACE = "<!-- figures -->", "<!-- end of figures -->"
GUARDED = ("repvgg", "qarepvgg")
SHOWN = [named(option) for option in OPTIONS if option != (8, "channel")]


def main():
    found = by_kind()
    forms = read_json(HERE / "forms.json")
    parts = [accuracies(found), costs(found, forms), rounded(found), layers(found), correlations(found)]
    readme = HERE / "README.md"
    text, (start, end) = readme.read_text(), PLACE
    before, after = text.split(start)[0], text.split(end)[1]
    body = "\n\n".join(parts)
    readme.write_text(f"{before}{start}\n{body}\n{end}{after}")
    print(body)


def by_kind():
    """Kind -> its networks, one per seed: what training cost, and what was measured."""
    found = {kind: [] for kind in KINDS}
    for name, network in results().items():
        if "measured" in network:
            found[name.split()[0]].append({"training": network["trained"], **network["measured"]})
    return {kind: networks for kind, networks in found.items() if networks}


def accuracies(found):
    plain = [network["float"]["report"] for network in found["plain"]]
    rows = []
    for kind, networks in found.items():
        floats = [network["float"]["report"] for network in networks]
        lost = [[network["float"]["report"] - network["int8"][ranges] for network in networks] for ranges in RANGES]
        against = "" if kind == "plain" else compared(floats, plain)
        rows.append([kind, str(len(networks)), points(floats), against, *(points(values) for values in lost)])
    return "**Accuracy after merging** of n networks, float and int8 in ONNX Runtime\n\n" + table(
        ["", "n", "top-1, float", "less plain, 95 % interval", *(f"lost in int8, {ranges}" for ranges in RANGES)], rows
    )


def costs(found, forms):
    rows = []
    for kind, networks in found.items():
        form = forms["forms"]["plain network" if kind == "plain" else kind]
        merged = forms["forms"]["plain network" if kind == "plain" else f"{kind} merged"]
        spent = [row["training"] for row in networks if row["training"]]
        rows.append([
            kind,
            f"{form['parameters_m']:.2f}",
            f"{form['kept_mib']:.0f}",
            spread([s["peak_mib"] for s in spent], ".0f"),
            spread([s["cpu_seconds_an_epoch"] for s in spent], ".1f"),
            f"{form['against_plain']:.2f}",
            f"{merged['against_plain']:.2f}",
        ])  # fmt: skip
    return "**What training costs, and what is left of it in ONNX Runtime**\n\n" + table(
        ["", "M parameters", "MiB kept", "MiB, peak", "CPU seconds an epoch", "latency of the training form", "merged"],
        rows,
    )


def rounded(found):
    rows = [
        [kind, *(points([lost(n, n["rounded"][option]) for n in networks]) for option in SHOWN)]
        for kind, networks in found.items()
    ]
    title = "**Points lost with the weights of all layers rounded**, activations in float"
    return f"{title}\n\n{table(['', *SHOWN], rows)}"


def layers(found):
    """Layer by layer, RepVGG against QARepVGG: means over seeds."""
    option, rows = "5 bits per tensor", []
    for i, name in enumerate(layer["layer"] for layer in found["plain"][0]["layers"]):
        row = [name]
        for kind in GUARDED:
            networks = found[kind]
            here = [network["layers"][i] for network in networks]
            row += [
                mean(here, "kurtosis", ".0f"),
                mean(here, "peak", ".0f"),
                f"{statistics.mean(h['sqnr_db'][option] for h in here):.0f}",
                f"{statistics.mean(h['sqnr_db']['5 bits per channel'] for h in here):.0f}",
                points([lost(n, h["accuracy"][option]) for n, h in zip(networks, here, strict=True)]),
                f"{sum(h['fragile'] for h in here)}/{len(here)}",
            ]
        rows.append(row)
    columns = ("kurtosis", "peak", "dB per tensor", "dB per channel", "points lost", "marked")
    headers = [f"{kind}: {columns[0]}" if column == columns[0] else column for kind in GUARDED for column in columns]
    return f"**The guard's numbers of each layer, and what {option} of this layer alone cost**\n\n" + table(
        ["layer", *headers], rows
    )


def correlations(found):
    """How well numbers known from the weights alone rank the layers by what rounding them then costs."""
    pairs = [(network, layer) for networks in found.values() for network in networks for layer in network["layers"]]
    rows = []
    for option in SHOWN:
        losses = [lost(network, layer["accuracy"][option]) for network, layer in pairs]
        divergences = [layer["divergence"][option] for _, layer in pairs]
        known = [
            [layer["kurtosis"] for _, layer in pairs],
            [layer["peak"] for _, layer in pairs],
            [-layer["sqnr_db"][option] for _, layer in pairs],
        ]
        ranks = [spearmanr(values, outcome).statistic for outcome in (losses, divergences) for values in known]
        split = [
            [x for x, (_, layer) in zip(losses, pairs, strict=True) if layer["fragile"] is f] for f in (True, False)
        ]
        rows.append([option, *(f"{rank:.2f}" for rank in ranks), *map(points, split)])
    names = [f"{name}, {what}" for what in ("points lost", "divergence") for name in ("kurtosis", "peak", "−dB")]
    title = (
        f"**Rank correlation over all {len(pairs)} layers** of the guard's numbers with what rounding that layer cost"
    )
    return f"{title}\n\n{table(['', *names, 'lost by marked layers', 'by others'], rows)}"


def lost(network, accuracy):
    """Accuracy lost on the search split."""
    return network["float"]["search"] - accuracy


def compared(values, plain):
    """The difference of two means in points with its 95 % interval (Welch), where there are seeds enough."""
    if min(len(values), len(plain)) < 2:
        return "?"
    parts = [statistics.variance(sample) / len(sample) for sample in (values, plain)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(s) - 1) for p, s in zip(parts, (values, plain), strict=True))
    half = float(student.ppf(0.975, freedom)) * math.sqrt(sum(parts))
    difference = statistics.mean(values) - statistics.mean(plain)
    verdict = "tied" if abs(difference) <= half else "higher" if difference > 0 else "lower"
    return f"{100 * difference:+.1f} ± {100 * half:.1f}, {verdict}".replace("-", "−")


def points(values):
    """Mean and standard deviation in per cent."""
    return spread([100 * value for value in values], ".1f")


def spread(values, form):
    if not values:
        return "?"
    middle = f"{statistics.mean(values):{form}}".replace("-0.0", "0.0").replace("-", "−")
    return f"{middle} ± {statistics.stdev(values):{form}}" if len(values) > 1 else middle


def mean(rows, key, form):
    return f"{statistics.mean(row[key] for row in rows):{form}}"


def table(headers, rows):
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
