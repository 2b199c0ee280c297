"""The texts of a bundle that people read: the model card, the table of layers, the requirements."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from hwsearch.export.manifest import Figures, Manifest, Update
from hwsearch.types import Accuracy, Energy, Latency, LayerTime

LIVE_DATA = "python"  # what a study calls data handed over as arrays

_CARD = """\
# {study} · {key}

{source}, compressed by hwsearch for `{target}`. {choices}

| {head} |
|{rule}|
{rows}

Accuracy is {metric}. Latency is one call at batch {batch} on {threads}: the minimum of the round medians. Brackets hold 95 % intervals.

Measured on {chip} ({isa}), {backend} {backend_version}.

## Requested and executed precision

| requested | executed | layers |
|---|---|---|
{precision}

Layer by layer: `layers.csv`.

## Limits

{limits}
{updates}
## Use

    pip install -r requirements.txt
    python infer.py
    python verify.py

Inputs are float32 {input_shape}, {preprocessing}. Outputs are float32 {output_shape}.

## Reproduce

    hwsearch search study.yaml

Paths in `study.yaml` are those of the machine that searched.
"""  # noqa: E501 - one paragraph, one line


def card(manifest: Manifest) -> str:
    """README.md: what the model is, how accurate and how fast, on what, and what these numbers do not say."""
    columns = {"this model": manifest.figures, **_uniform(manifest.baselines)}
    device = manifest.device
    return _CARD.format(
        study=manifest.study,
        key=manifest.key,
        source=manifest.source,
        target=manifest.target.name,
        choices=_choices(manifest),
        head=" | ".join(["", *columns]),
        rule="---|" * len(columns) + "---",
        rows="\n".join(_rows(columns)),
        metric=_where(manifest.figures.accuracy),
        batch=manifest.figures.latency.batch,
        threads=_count(device.threads, "thread"),
        chip=device.chip,
        isa=", ".join(device.isa) or "no special instruction sets",
        backend=device.backend,
        backend_version=device.backend_version,
        precision="\n".join(_precision_rows(manifest.layers)),
        limits="\n".join(f"* {limit}" for limit in _limits(manifest)),
        updates=_updates(manifest.updates),
        input_shape=_shape(manifest.input.shape),
        output_shape=_shape(manifest.output.shape),
        preprocessing=_preprocessing(manifest.preprocessing),
    )


def layers_csv(layers: Iterable[LayerTime]) -> str:
    """One row per unit the runtime executes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["runtime_layer", "kind", "source_layers", "requested", "executed", "ms"])
    for layer in layers:
        table.writerow(
            [layer.runtime_layer, layer.kind, " ".join(layer.source_layers), layer.requested, layer.executed, layer.ms]
        )
    return text.getvalue()


def requirements_txt(versions: Mapping[str, str]) -> str:
    """Exact versions, one a line."""
    return "".join(f"{name}=={version}\n" for name, version in versions.items())


def _uniform(baselines: Mapping[str, Figures]) -> dict[str, Figures]:
    return {name if name == "fp32" else f"uniform {name}": figures for name, figures in baselines.items()}


def _rows(columns: Mapping[str, Figures]) -> list[str]:
    mine, *others = columns.values()
    cells = [
        ["accuracy", *(_accuracy(figures.accuracy) for figures in columns.values())],
        ["latency, ms", *(_latency(figures.latency) for figures in columns.values())],
        ["this model takes", "", *(f"{mine.ratio_to(other):.3f} of its time" for other in others)],
        ["size, MB", *(f"{figures.size_bytes / 1e6:.3f}" for figures in columns.values())],
    ]
    if mine.energy is not None:
        named = f"energy of an example beyond idle, mJ ({mine.energy.source})"
        cells.append([named, *(_energy(figures.energy) for figures in columns.values())])
    return [f"| {' | '.join(row)} |" for row in cells]


def _accuracy(accuracy: Accuracy) -> str:
    percent = accuracy.metric == "top1"
    shown = [f"{100 * x:.2f} %" if percent else f"{x:.4g}" for x in (accuracy.value, *(accuracy.ci95 or ()))]
    return shown[0] if accuracy.ci95 is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _latency(latency: Latency) -> str:
    low, high = latency.ci95_ms
    return f"{latency.best_ms:.4g} [{low:.4g}, {high:.4g}]"


def _energy(energy: Energy | None) -> str:
    return "" if energy is None else f"{energy.net_mj:.4g} [{energy.ci95_mj[0]:.4g}, {energy.ci95_mj[1]:.4g}]"


def _where(accuracy: Accuracy) -> str:
    return f"{accuracy.metric} on {_count(accuracy.examples, 'example')} of the {accuracy.split} split"


def _choices(manifest: Manifest) -> str:
    candidate = manifest.candidate
    counts = Counter(candidate.precision.values())
    parts = [f"{_count(count, 'layer')} in {name}" for name, count in counts.most_common()]
    if candidate.keep:
        parts.append(f"{_count(len(candidate.keep), 'channel group')} narrowed")
    if candidate.dropped:
        parts.append(f"dropped {', '.join(candidate.dropped)}")
    return f"{'; '.join(parts)}; {manifest.params:,} parameters, {manifest.macs:,} multiply-accumulates per example."


def _precision_rows(layers: Iterable[LayerTime]) -> list[str]:
    pairs = Counter((layer.requested, layer.executed) for layer in layers for _ in layer.source_layers)
    return [
        f"| {requested or 'not said'} | {executed or 'not said'}{_fell_back(requested, executed)} | {count} |"
        for (requested, executed), count in pairs.most_common()
    ] or ["| not read back | not read back | |"]


def _fell_back(requested: str | None, executed: str | None) -> str:
    return " (not as requested)" if requested and executed and requested != executed else ""


def _limits(manifest: Manifest) -> list[str]:
    pinned = next((v for name, v in manifest.requirements.items() if name != "numpy"), "")
    found = ["Latency holds for the device above. `hwsearch verify` measures it elsewhere, and says so."]
    if manifest.figures.accuracy.split != "report":
        found.append("The accuracy is of the split that guided the search, hence optimistic.")
    if not manifest.exact:
        found.append("Layers below 32 bits can round differently on processors with other instruction sets.")
    if not manifest.device.backend_version.startswith(pinned):
        found.append(f"The samples were computed with version {pinned} of the runtime, not the one measured.")
    if manifest.preprocessing["source"] == LIVE_DATA:
        found.append("It was searched from Python, with data that `study.yaml` does not name.")
    if not manifest.artifact.portable:
        found.append("The model file runs only on the device it was built for.")
    return found


def _updates(updates: Sequence[Update]) -> str:
    """A table of what changed the weights after the export; empty without any."""
    if not updates:
        return ""
    rows = [
        f"| {update.version} | {update.scene} | {' + '.join(update.rungs)} | {update.labels} | "
        f"{_optional(update.before)} | {_optional(update.after)} | {_accuracy(update.source_after)} |"
        for update in updates
    ]
    head = [
        "| version | scene | by | labels | accuracy before | accuracy after | on the source |",
        "|---|" + "---|" * 6,
    ]
    return "\n".join(["", "## Updates", "", *head, *rows, ""])


def _optional(accuracy: Accuracy | None) -> str:
    return "not scored" if accuracy is None else _accuracy(accuracy)


def _preprocessing(facts: Mapping[str, object]) -> str:
    normalize = facts["normalize"]
    if isinstance(normalize, Mapping):
        return f"pixels scaled to 0..1, less {normalize['mean']}, divided by {normalize['std']} per channel"
    return f"as `{facts['source']}` gives them, pixels scaled to 0..1"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
