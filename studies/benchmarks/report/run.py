"""How large and how fast the report and the dashboard are: 500 evaluations of a network with 60 prune groups.

    python studies/benchmarks/report/run.py [--evaluations 500] [--blocks 19] [--seconds 60]

The evaluations are made up by a small cost model (``tests/synthetic_run.py``), but take the way of real ones: recorded
in the database of a run folder, read back, rendered, opened in headless Chromium. The dashboard runs beside, with its
page open, while the last of them are recorded, one every three seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from browser_support import start_browser  # noqa: E402
from synthetic_run import MadeUpRun, make_run  # noqa: E402

from hwsearch.config import resolved_yaml  # noqa: E402
from hwsearch.report.html import write_report  # noqa: E402
from hwsearch.report.views import VIEWS, Facts  # noqa: E402
from hwsearch.search import storage  # noqa: E402
from hwsearch.search.front import choose  # noqa: E402
from hwsearch.search.run import FRONT_FILE, Identity, Run, storage_url, write_facts  # noqa: E402
from hwsearch.store import write_json  # noqa: E402
from hwsearch.types import Success, to_json  # noqa: E402

STUDY = "benchmark/ort-cpu"
PACE_S = 3.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--blocks", type=int, default=19, help="residual blocks per stage: 3 groups each, and 3 more")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch the dashboard")
    asked = parser.parse_args()
    made = make_run(asked.evaluations, asked.blocks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs" / "benchmark" / "ort-cpu"
        written = asked.evaluations - round(asked.seconds / PACE_S)
        study = started(made, folder)
        for trial in made.trials:
            if trial.number < written:
                record(study, trial)
        found = {"groups": len(made.source.groups), "layers": len(made.source.layers)}
        live = watched(folder, study, made.trials[written:])
        write_json(folder / FRONT_FILE, front(made))
        found |= report(folder, Path(name)) | live
    print(json.dumps(found, indent=1))


def started(made: MadeUpRun, folder: Path) -> optuna.Study:
    """A run folder as a search begins it."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(resolved_yaml(made.config))
    identity = Identity(source=made.source, target=made.target, space=made.space, device=made.device, metric="top1",
                        data=made.data, objectives=("accuracy", "latency"))  # fmt: skip
    write_facts(folder, identity, owner="benchmark", study_name=STUDY, versions=made.versions, created=made.created)
    sampler = optuna.samplers.RandomSampler(seed=0)
    url, objectives = storage_url(made.config, folder), ("accuracy", "latency")
    return storage.open_study(url, STUDY, objectives=objectives, higher_is_better=True, sampler=sampler)


def record(study: optuna.Study, trial) -> None:
    storage.record(study, study.ask(), trial)


def front(made: MadeUpRun) -> dict:
    return {"finalists": sorted(t.candidate.key for t in choose(made.trials)), "front": to_json(made.front)}


# --------------------------------------------------------------------------- the report


def report(folder: Path, place: Path) -> dict:
    """Seconds and sizes from the run folder to the page in the browser."""
    command = [sys.executable, "-c", COLD, str(folder)]
    cold = float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    run = Run.open(folder)
    begun = time.perf_counter()
    path = write_report(run, place / "report.html")
    done = time.perf_counter()
    Run.open(folder)
    again = time.perf_counter()
    assert run.front is not None
    assert run.front.final
    return {
        "evaluations": len(run.trials),
        "successes": sum(isinstance(trial.outcome, Success) for trial in run.trials),
        "read_s": round(cold, 2),
        "read_again_s": round(again - done, 2),
        "write_s": round(done - begun, 2),
        "report_mb": round(path.stat().st_size / 1e6, 2),
    } | opened(path)


COLD = """import sys, time
from hwsearch.search.run import Run
begun = time.perf_counter()
Run.open(sys.argv[1])
print(time.perf_counter() - begun)"""


def opened(path: Path) -> dict:
    """How long until the first chart stands and until all do, and for a step of a slider: the middle of five."""
    browser = start_browser(path.parent)
    try:
        first, everything, slides = [], [], []
        for _ in range(5):
            begun = time.perf_counter()
            browser.get(path.as_uri())
            browser.execute_async_script(FIRST)
            first.append(time.perf_counter() - begun)
            slides.append(browser.execute_async_script(SLIDE))
            browser.execute_async_script(EVERYTHING)
            everything.append(time.perf_counter() - begun)
        return {
            "first_chart_s": round(sorted(first)[2], 2),
            "scrolled_through_s": round(sorted(everything)[2], 2),
            "slider_step_ms": round(sorted(slides)[2]),
        }
    finally:
        browser.quit()


FIRST = """const done = arguments[0];
const point = () => document.querySelector("[data-chart=pareto] .main-svg .point");
const look = () => (point() ? done() : requestAnimationFrame(look));
look();"""
SLIDE = """const done = arguments[0], slider = document.getElementById("limit-latency"), begun = performance.now();
slider.value = slider.max / 2;
slider.dispatchEvent(new Event("input"));
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));"""
EVERYTHING = """const done = arguments[0], hosts = [...document.querySelectorAll("[data-chart]:not([hidden]) .plot")];
const look = () => {
  const next = hosts.find((host) => !host.querySelector(".main-svg"));
  if (!next) return done();
  next.scrollIntoView();
  requestAnimationFrame(look);
};
look();"""


# --------------------------------------------------------------------------- the dashboard


@contextmanager
def serve(folder: Path):
    """A dashboard of a run in a process of its own: its id and its address."""
    command = [sys.executable, "-m", "hwsearch", "dashboard", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield server.pid, json.loads("".join(server.stdout.readline() for _ in range(4)))["url"]
        finally:
            server.terminate()


def watched(folder: Path, study: optuna.Study, coming) -> dict:
    """What the dashboard's process costs while evaluations come in and its page is open."""
    with serve(folder) as (pid, url):
        browser = start_browser(folder)
        try:
            browser.get(url)
            time.sleep(5)
            process, begun = psutil.Process(pid), time.perf_counter()
            before = process.cpu_times()
            for trial in coming:
                record(study, trial)
                time.sleep(PACE_S)
            after, wall = process.cpu_times(), time.perf_counter() - begun
            recorded = time.perf_counter()
            while not shown(browser).startswith(f"{coming[-1].number + 1} of") and time.perf_counter() < recorded + 60:
                time.sleep(0.1)
            delay = time.perf_counter() - recorded
            words = shown(browser)
        finally:
            browser.quit()
    busy = after.user + after.system - before.user - before.system
    facts = Facts(Run.open(folder))
    drawing = time.thread_time()
    VIEWS["pareto"].draw(facts)
    drawing = time.thread_time() - drawing
    return {
        "dashboard_core_share": round(busy / wall, 4),
        "dashboard_says": words,
        "last_evaluation_shown_after_s": round(delay + PACE_S, 1),
        "pareto_draw_s": round(drawing, 2),
    }


def shown(browser) -> str:
    """How far the search is, as the page tells."""
    return browser.execute_script("return document.querySelector('.card .sub').textContent")


if __name__ == "__main__":
    main()
