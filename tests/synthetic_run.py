"""A made-up but realistic run for the report's tests: ResNet-20, baselines, failures, ties, a final front."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsearch.config import StudyConfig
from hwsearch.search.effects.effects import Effect, Sensitivity
from hwsearch.search.front import assemble, choose, costs_of
from hwsearch.search.pareto import front_mask
from hwsearch.types import (
    Accuracy,
    Artifact,
    Branch,
    Candidate,
    Device,
    Failure,
    Front,
    Latency,
    LayerInfo,
    LayerTime,
    OpCapability,
    PruneGroup,
    SearchSpace,
    SourceModel,
    Success,
    Target,
    Trial,
)

DEVICE = Device(
    backend="onnxruntime",
    backend_version="1.23.2",
    chip="Made-up Xeon 8481C",
    isa=("avx2", "avx512_vnni"),
    threads=1,
    options={"graph": "all"},
)
TARGET = Target(
    name="ort-cpu",
    backend="onnxruntime",
    threads=1,
    batch=1,
    ops={"conv": OpCapability(accepts=("fp32", "int8"), accelerates=("fp32", "int8"))},
    mixed_float=False,
    granularity=4,
    min_keep=0.25,
)
FAILURES = (
    Failure(stage="build", error="timeout", message="build took longer than 120 s", hint="raise search.timeout_s"),
    Failure(
        stage="latency",
        error="crash",
        message="the worker died with signal 11",
        log="Fatal error: <Conv> segfault\n</script><script>window.hacked = true</script>",
    ),
    Failure(stage="build", error="Fail", message="could not fuse <b>QLinearConv</b> & Add", hint='see "notes"'),
    Failure(stage="build", error="timeout", message="build took longer than 120 s", hint="raise search.timeout_s"),
)


@dataclass(frozen=True)
class MadeUpRun:
    path: Path
    config: StudyConfig
    source: SourceModel
    space: SearchSpace
    target: Target
    device: Device
    data: dict[str, str]
    versions: dict[str, str]
    created: str
    trials: tuple[Trial, ...]
    front: Front | None
    sensitivity: Sensitivity | None = None


def make_run(evaluations=60, blocks=3, *, final=True, seed=0, limits=None, metric="top1", higher=True) -> MadeUpRun:
    """A run whose numbers come from a small cost model; `blocks` residual blocks in each of the three stages."""
    source = resnet(blocks)
    rng = np.random.default_rng(seed)
    maker = _Maker(source, rng, metric, higher)
    trials = maker.trials(evaluations)
    return MadeUpRun(
        path=Path("runs/cifar10 resnet20/ort-cpu"),
        config=StudyConfig(
            name="cifar10-resnet20",
            model="hwsearch.zoo.resnet:resnet20",
            data={"source": "cifar10"},
            targets=("ort-cpu",),
            limits=limits or {},
            direction="maximize" if higher else "minimize",
        ),
        source=source,
        space=SearchSpace(target="ort-cpu", widths={}, droppable=(), precisions={}, float_precisions=("fp32",)),
        target=TARGET,
        device=DEVICE,
        data={"calibrate": "aa" * 32, "search": "bb" * 32, "report": "cc" * 32},
        versions={"hwsearch": "0.1.0", "onnxruntime": "1.23.2", "python": "3.11"},
        created="2026-01-02T03:04:05+00:00",
        trials=trials,
        front=maker.front(trials, final=final),
    )


def make_sensitivity(source: SourceModel) -> Sensitivity:
    """A loss for every branch, three widths of every group and int8 of every layer, one of which failed."""
    rng = np.random.default_rng(0)

    def effect(kind, name, value, size):
        loss = size * rng.lognormal()
        return Effect(kind=kind, name=name, value=value, loss=loss, sigma=0.1 * loss)

    effects = [effect("drop", branch.name, 1, 0.2) for branch in source.branches]
    for group in source.groups:
        effects += [effect("keep", group.name, group.channels * n // 4, 0.3 / n**2) for n in (1, 2, 3)]
        effects.append(Effect(kind="keep", name=group.name, value=group.channels, loss=0.0, sigma=0.0))
    effects += [effect("precision", layer.name, "int8", 1e-4) for layer in source.layers[:-1]]
    last = source.layers[-1].name
    effects.append(
        Effect(kind="precision", name=last, value="int8", loss=math.inf, sigma=0.0, problem="build: no kernel")
    )
    return Sensitivity(images=512, measure="kl", method="measured", effects=tuple(effects))


def resnet(blocks: int) -> SourceModel:
    """CIFAR ResNet with `blocks` blocks per stage: 3 gives 22 layers (projection shortcuts) and 12 groups."""
    layers = [_conv("conv1", 3, 16, 32, "conv1")]
    groups = [PruneGroup(name="conv1", channels=16, kind="stage", axes=())]
    branches, before, stage_group = [], 16, "conv1"
    for stage, width in enumerate((16, 32, 64), start=1):
        size = 32 >> (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            if block == 0 and stage > 1:
                stage_group = f"{name}.conv2"
                groups.append(PruneGroup(name=stage_group, channels=width, kind="stage", axes=()))
            inner = f"{name}.conv1"
            groups.append(PruneGroup(name=inner, channels=width, kind="inner", axes=()))
            layers += [
                _conv(inner, before, width, size, inner),
                _conv(f"{name}.conv2", width, width, size, stage_group),
            ]
            if before != width:
                layers.append(_conv(f"{name}.downsample.0", before, width, size, stage_group, kernel=1))
            else:
                inside = (inner, f"{name}.conv2")
                branches.append(
                    Branch(name=name, layers=inside, groups=(inner,), add_node=f"{name}.add", branch_input=0)
                )
            before = width
    layers.append(
        LayerInfo(
            name="fc",
            op="linear",
            in_shape=(64,),
            out_shape=(10,),
            params=650,
            macs=640,
            width_group=None,
            quant_group="fc",
        )
    )
    return SourceModel(
        name="hwsearch.zoo.resnet:resnet20",
        sha256="12fca82f" * 8,
        input_shape=(3, 32, 32),
        output_shape=(10,),
        layers=tuple(layers),
        groups=tuple(groups),
        branches=tuple(branches),
    )


def _conv(name, channels_in, channels_out, size, group, kernel=3):
    params = channels_in * channels_out * kernel * kernel + channels_out
    return LayerInfo(
        name=name,
        op="conv",
        in_shape=(channels_in, size, size),
        out_shape=(channels_out, size, size),
        params=params,
        macs=params * size * size,
        width_group=group,
        quant_group=name,
    )


@dataclass
class _Maker:
    source: SourceModel
    rng: np.random.Generator
    metric: str
    higher: bool

    def trials(self, count: int) -> tuple[Trial, ...]:
        made = [self.trial(i, self.uniform(name), name) for i, name in enumerate(("fp32", "bf16", "int8"))]
        while len(made) < count:
            number = len(made)
            if number % 15 == 9:
                failure = FAILURES[number // 15 % len(FAILURES)]
                made.append(self.failed(number, failure))
            else:
                made.append(self.trial(number, self.sample(), None))
        return tuple(made[:count])

    def uniform(self, name: str) -> Candidate:
        return Candidate(keep={}, dropped=(), precision={layer.name: name for layer in self.source.layers})

    def sample(self) -> Candidate:
        dropped = tuple(sorted(b.name for b in self.source.branches if self.rng.random() < 0.12))
        gone = {layer for b in self.source.branches if b.name in dropped for layer in b.layers}
        keep = {
            g.name: int(g.channels * self.rng.choice([0.5, 0.625, 0.75, 0.875]))
            for g in self.source.groups
            if g.name not in gone and self.rng.random() < 0.2 + 0.4 * (self.rng.random() < 0.4)
        }
        precision = {
            layer.name: "int8" if self.rng.random() < 0.85 else "fp32"
            for layer in self.source.layers
            if layer.name not in gone
        }
        return Candidate(keep=keep, dropped=dropped, precision=precision)

    def failed(self, number: int, failure: Failure) -> Trial:
        seconds = {"stitch": 0.2, "build": 120.0 if failure.error == "timeout" else 0.7}
        return Trial(
            number=number,
            candidate=self.sample(),
            baseline=None,
            outcome=failure,
            constraints={},
            seconds=seconds,
        )

    def trial(self, number: int, candidate: Candidate, baseline: str | None) -> Trial:
        work = {layer.name: self.cost(layer, candidate) for layer in self.source.layers}
        ms = 0.06 + sum(work.values())
        macs = int(sum(layer.macs * self.left(layer, candidate) for layer in self.source.layers))
        lost = 1 - macs / sum(layer.macs for layer in self.source.layers)
        value = 0.917 - 0.25 * lost**2 - 0.001 * (baseline == "int8") - abs(self.rng.normal(0, 0.002)) * (not baseline)
        seconds = {"stitch": 0.21, "build": 0.4 + ms / 4, "accuracy": 1.1 + ms, "latency": 2.0}
        return Trial(
            number=number,
            candidate=candidate,
            baseline=baseline,
            outcome=Success(
                accuracy=self.accuracy(value, "search", 2000),
                latency=self.latency(ms),
                artifact=self.artifact(candidate),
                layers=self.kernels(candidate, work),
                params=270_000,
                nonzero=270_000,
                macs=macs,
            ),
            constraints={"size_mb": 0.2 if baseline is None and number % 7 == 0 else -1.0},
            seconds={name: float(s * self.rng.uniform(0.8, 1.2)) for name, s in seconds.items()},
        )

    def left(self, layer: LayerInfo, candidate: Candidate) -> float:
        if layer.name not in candidate.precision:
            return 0.0
        group = next((g for g in self.source.groups if g.name == layer.width_group), None)
        return candidate.keep.get(group.name, group.channels) / group.channels if group else 1.0

    def cost(self, layer: LayerInfo, candidate: Candidate) -> float:
        speed = {"fp32": 1.0, "bf16": 0.9, "int8": 0.42}.get(candidate.precision.get(layer.name, ""), 0.0)
        return layer.macs / 50e6 * self.left(layer, candidate) * speed

    def accuracy(self, value: float, split: str, examples: int) -> Accuracy:
        half = 1.96 * (value * (1 - value) / examples) ** 0.5
        shown, low, high = (v if self.higher else 1 - v for v in (value, value - half, value + half))
        return Accuracy(
            metric=self.metric,
            value=shown,
            higher_is_better=self.higher,
            examples=examples,
            ci95=(min(low, high), max(low, high)),
            split=split,
            data_hash="dd" * 32,
        )

    def latency(self, ms: float) -> Latency:
        best = ms * float(self.rng.uniform(1.0, 1.012))
        return Latency(
            best_ms=best,
            median_ms=1.03 * best,
            p90_ms=1.1 * best,
            p99_ms=float(self.rng.uniform(1.12, 1.5)) * best,
            ci95_ms=(0.993 * best, 1.009 * best),
            rounds=30,
            samples=600,
            batch=1,
            source="measured",
            sigma_ms=0.004 * best,
        )

    def artifact(self, candidate: Candidate) -> Artifact:
        size = 20_000 + sum(
            layer.params * self.left(layer, candidate) * (1 if candidate.precision.get(layer.name) == "int8" else 4)
            for layer in self.source.layers
        )
        return Artifact(
            path=f"work/artifacts/{candidate.key}/model.onnx",
            files=(),
            format="onnx",
            sha256="ee" * 32,
            size_bytes=int(size),
            portable=True,
        )

    def kernels(self, candidate: Candidate, work: dict[str, float]) -> tuple[LayerTime, ...]:
        """One kernel per layer, glue between them; the first integer layer runs wider than asked, fc does not tell."""
        names = list(candidate.precision)
        first_integer = next((n for n in names if candidate.precision[n] == "int8"), None)
        units = []
        for name in names:
            requested = candidate.precision[name]
            executed = "fp32" if name == first_integer else None if name == "fc" else requested
            kind = "QLinearConv" if executed == "int8" else "FusedConv"
            units.append(_unit(name + ".kernel", kind, (name,), requested, executed, work[name]))
        glue = [
            _unit(f"q{i}", kind, (), None, None, 0.008) for i, kind in enumerate(("QuantizeLinear", "Reorder", "Add"))
        ]
        return (*units, *glue)

    def front(self, trials: tuple[Trial, ...], *, final: bool) -> Front | None:
        chosen = choose(trials)
        if not chosen:
            return None
        outcomes = {t.candidate.key: t.outcome for t in chosen}
        latencies = {key: o.latency for key, o in outcomes.items()}
        accuracies = {key: o.accuracy for key, o in outcomes.items()}
        if final:
            noise = {key: float(self.rng.normal(0, 0.002)) for key in outcomes}
            latencies = {key: self.latency(o.latency.best_ms) for key, o in outcomes.items()}
            accuracies = {
                key: self.accuracy((a.value if self.higher else 1 - a.value) - 0.002 + noise[key], "report", 8000)
                for key, a in accuracies.items()
            }
        front = assemble(
            chosen,
            latencies,
            accuracies,
            target="ort-cpu",
            device=DEVICE,
            objectives=("accuracy", "latency"),
            final=final,
        )
        mask = front_mask([costs_of(p.accuracy, p.latency) for p in front.points])
        points = zip(front.points, mask, strict=True)
        return dataclasses.replace(
            front, points=tuple(dataclasses.replace(point, on_front=bool(on)) for point, on in points)
        )


def _unit(name, kind, layers, requested, executed, ms):
    return LayerTime(runtime_layer=name, kind=kind, source_layers=layers, requested=requested, executed=executed, ms=ms)


def only_failures(run: MadeUpRun) -> MadeUpRun:
    """The same run, had nothing worked."""
    kept = tuple(t for t in run.trials if isinstance(t.outcome, Failure))
    return dataclasses.replace(run, trials=kept, front=None)
