"""How fast do search methods find the front? Hypervolume over evaluations, several seeds, on a real network.

    python studies/benchmarks/search/compare.py run STUDY FOLDER --target ort-cpu --methods guided,tpe --seeds 0,1
    python studies/benchmarks/search/compare.py report FOLDER

Every method goes through the product's own loop and evaluates the artifact that would ship: pruned, repaired, quantised
and run by the backend on the search split. Latencies are those of the latency table, so that all methods see the same,
noise-free chart; accuracies are kept in FOLDER and not computed twice.
"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from curves import report
from methods import Shared, make_proposer

from hwsearch.config import load_study
from hwsearch.search import storage
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.loop import Evaluates, Search, run_baselines, run_loop
from hwsearch.search.prepare import identity, load_subject, ready_target, space_for
from hwsearch.search.progress import silent
from hwsearch.search.samplers import SAMPLERS, make_sampler
from hwsearch.types import Candidate, Failure, Success, Trial, from_json, to_json

app = typer.Typer()


class Remembering:
    """An evaluator that never evaluates a candidate twice; its memory is a file shared by all methods and seeds.

    Latencies are not remembered but looked up, so that the memory outlives a table.
    """

    def __init__(self, evaluator: Evaluator, path: Path) -> None:
        self._evaluator, self._path = evaluator, path

    def evaluate(self, candidate: Candidate, *, baseline: bool = False) -> tuple[Success | Failure, dict[str, float]]:
        """The known result, or a new one, without what the comparison does not need."""
        known = self._known().get(candidate.key)
        if known is None:
            outcome, seconds = self._evaluator.evaluate(candidate, baseline=baseline)
            known = {"key": candidate.key, "outcome": to_json(outcome) | _bare(outcome), "seconds": seconds}
            with self._path.open("a") as stream:
                stream.write(json.dumps(known) + "\n")
        found = from_json(Trial, _as_trial(known, candidate)).outcome
        if isinstance(found, Success):
            looked_up = self._evaluator.latency(candidate, found.artifact, found.accuracy, baseline=baseline)
            found = replace(found, latency=looked_up)
        return found, known["seconds"]

    def remember(self, trial: Trial) -> None:
        """Nothing: a table that learnt would change the chart between methods."""

    def _known(self) -> dict[str, dict]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return {entry["key"]: entry for entry in map(json.loads, lines)}


def _bare(outcome: Success | Failure) -> dict:
    return {"layers": []} if isinstance(outcome, Success) else {}


def _as_trial(known: dict, candidate: Candidate) -> dict:
    trial = Trial(number=0, candidate=candidate, baseline=None, outcome=Failure(stage="", error="", message=""),
                  constraints={}, seconds={})  # fmt: skip
    return to_json(trial) | {"outcome": known["outcome"]}


@app.command()
def run(
    study: Path,
    out: Path,
    *,
    target: str = "ort-cpu",
    methods: str = "guided,seeded-tpe,tpe,nsga2,random,greedy,uniform",
    seeds: str = "0,1,2",
    evaluations: int = 100,
    setting: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Search with each method and seed; what FOLDER already holds is not repeated."""
    # Limits of the study would end the front where the curves do not.
    free = ["limits.accuracy_drop_points=null", "search.patience=null", f"search.evaluations={evaluations}"]
    settings = ["latency=table", *free, *(setting or ())]
    config = load_study(study, settings)
    subject = load_subject(config)
    ready = ready_target(target, config)
    facts = identity(subject, ready, space_for(subject, ready, config), config)
    out.mkdir(parents=True, exist_ok=True)
    work = out / f"work-{methods.replace(',', '-')}"  # of its own for each of several processes
    with Evaluator(subject, ready, config, work) as evaluator:
        shared = Shared(config, facts, evaluator, work)
        for seed in map(int, seeds.split(",")):
            for method in methods.split(","):
                _search(method, seed, shared, Remembering(evaluator, out / "evaluations.jsonl"), out, evaluations)


def _search(method: str, seed: int, shared: Shared, evaluator: Evaluates, out: Path, evaluations: int) -> None:
    study = storage.open_study(
        f"sqlite:///{(out / f'{method}-{seed}.db').resolve()}",
        method,
        objectives=shared.config.objectives,
        higher_is_better=True,
        sampler=make_sampler(method if method in SAMPLERS else "tpe", seed),
    )
    search = Search(
        config=shared.config,
        identity=shared.identity,
        study=study,
        evaluator=evaluator,
        proposer=make_proposer(method, study, shared, seed=seed, budget=evaluations),
        owner="comparison",
        watch=silent,
        stop=threading.Event(),
        total=evaluations,
    )
    run_baselines(search)
    run_loop(search)
    trials = [to_json(trial) for trial in search.trials]
    (out / f"{method}-{seed}.json").write_text(json.dumps(trials))
    print(f"{method}, seed {seed}: {len(trials)} evaluations", flush=True)


app.command("report")(report)

if __name__ == "__main__":
    app()
