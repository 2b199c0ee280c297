"""Whether a dashboard that looks at a run every 10 s disturbs what is measured beside it.

    python studies/benchmarks/report/beside.py [--rounds 3] [--models 24] [--evaluations 500]

Campaigns of `hwsearch benchmark` over the same model files, by turns alone and with the dashboard's page open in
headless Chromium on the same machine (alone, beside, beside, alone), while evaluations of a search of hundreds come in,
one every five seconds. Every campaign is compared with the one before it, model by model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT / "tests"), str(ROOT / "studies" / "benchmarks" / "latency")]

from browser_support import start_browser  # noqa: E402
from models import variants  # noqa: E402
from run import record, serve, shown, started  # noqa: E402
from synthetic_run import make_run  # noqa: E402

PACE_S = 5.0
TURNS = (False, True, True, False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of four campaigns each")
    parser.add_argument("--models", type=int, default=24, help="enough that a campaign outlasts a refresh")
    parser.add_argument("--evaluations", type=int, default=500, help="there when the dashboard starts")
    asked = parser.parse_args()
    made = make_run(asked.evaluations + 300, blocks=19)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs" / "benchmark" / "ort-cpu"
        study = started(made, folder)
        for trial in made.trials[: asked.evaluations]:
            record(study, trial)
        (Path(name) / "models").mkdir()
        paths = variants(Path(name) / "models", asked.models)
        with coming_in(study, made.trials[asked.evaluations :]), serve(folder) as (_, url):
            campaigns = by_turns(paths, url, Path(name), TURNS * asked.rounds)
    print(json.dumps(figures(campaigns), indent=1))


@contextmanager
def coming_in(study, trials):
    """A search that records an evaluation every few seconds."""
    over = threading.Event()

    def search():
        for trial in trials:
            if over.wait(PACE_S):
                return
            record(study, trial)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def by_turns(paths, url, place, turns):
    """(beside a dashboard?, latency per model in ms, evaluations the page showed first and last) per campaign."""
    browser, campaigns = start_browser(place), []
    try:
        for beside in turns:
            browser.get(url if beside else "about:blank")
            time.sleep(5)  # loading the page is no refresh
            first = evaluations_shown(browser)
            campaigns.append((beside, measured(paths), evaluations_shown(browser) - first))
            print(len(campaigns), beside, campaigns[-1][2], file=sys.stderr)
    finally:
        browser.quit()
    return campaigns


def evaluations_shown(browser) -> int:
    return int(shown(browser).partition(" of ")[0]) if browser.current_url.startswith("http") else 0


def measured(paths) -> np.ndarray:
    command = [sys.executable, "-m", "hwsearch", "benchmark", *map(str, paths), "--json", "--quiet"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return np.array([model["latency"]["best_ms"] for model in json.loads(printed)["models"]])


def figures(campaigns) -> dict:
    """Changes between campaigns that follow each other, per model: |change| by kind of pair, and beside over alone."""
    changes = {"alone_alone": [], "beside_beside": [], "alone_beside": []}
    ratios = []
    for (one, before, _), (other, after, _) in itertools.pairwise(campaigns):
        kind = "alone_beside" if one != other else "beside_beside" if one else "alone_alone"
        changes[kind].append(np.abs(after / before - 1))
        if one != other:
            ratios.append(float(np.log(after / before if other else before / after).mean()))
    error = 1.96 * np.std(ratios, ddof=1) / len(ratios) ** 0.5
    found = {
        kind: {
            "campaign_pairs": len(values),
            "mean_pct": round(100 * float(np.mean(values)), 2),
            "p95_pct": round(100 * float(np.percentile(values, 95)), 2),
        }
        for kind, values in changes.items()
    }
    return found | {
        "beside_over_alone": round(float(np.exp(np.mean(ratios))), 4),
        "ci95": [round(float(np.exp(np.mean(ratios) + sign * error)), 4) for sign in (-1, 1)],
        "evaluations_taken_up_per_campaign": float(np.mean([seen for beside, _, seen in campaigns if beside])),
    }


if __name__ == "__main__":
    main()
