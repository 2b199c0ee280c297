"""The figures of README.md: the benchmark of `run.py` in every setting that is listed there, in about a minute."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
PLACE = "<!-- figures -->", "<!-- end of figures -->"
LARGE = ("--width", "1", "--size", "224", "--device", "meta")
SETTINGS = {
    "ResNet-18, width .25, batch 64, 96×96": (),
    "ResNet-18, batch 64, 224×224": LARGE,
    "ResNet-34, batch 64, 224×224": (*LARGE, "--model", "resnet34"),
    "ResNet-50, batch 64, 224×224": (*LARGE, "--model", "resnet50"),
    "ResNet-18, batch 8, 64×64": ("--width", "1", "--size", "64", "--batch", "8", "--device", "meta"),
}
FORMS = ("plain", "dbb", "orepa")


def main():
    reports = {name: measured(options) for name, options in SETTINGS.items()}
    text = "\n\n".join((memory(reports), time(next(iter(reports.values())))))
    readme, (start, end) = HERE / "README.md", PLACE
    before, after = readme.read_text().split(start)[0], readme.read_text().split(end)[1]
    readme.write_text(f"{before}{start}\n{text}\n{end}{after}")
    (HERE / "results.json").write_text(json.dumps(reports, indent=1) + "\n")
    print(text)


def measured(options):
    command = [sys.executable, str(HERE / "run.py"), *options]
    print(*command, file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory(reports):
    rows = ["| MiB kept | plain | DBB | OREPA | of DBB's extra memory saved | of all its memory |", "|---" * 6 + "|"]
    for name, report in reports.items():
        kept = report["kept_mib"]
        cells = [f"{kept[form]:.0f}" for form in FORMS]
        share = 1 - kept["orepa"] / kept["dbb"]
        rows.append(
            f"| {' | '.join([name, *cells])} | **{percent(report['extra_saved_of_dbb'])}** | {percent(share)} |"
        )
    return "\n".join(rows)


def time(report):
    """Of the setting that was computed, not only counted."""
    step = report["step_ms"]
    each = ", ".join(f"{step[form]:.0f} ms {name}" for form, name in zip(FORMS, ("plain", "DBB", "OREPA"), strict=True))
    how = f"median of {report['steps']} in turns, threads of torch: {report['threads']}"
    ratio = f"OREPA's is **{report['dbb_over_orepa']:.2f} times** as fast as DBB's."
    return textwrap.fill(f"A step at width .25 takes {each} ({how}): {ratio}", width=120)


def percent(share):
    return f"{100 * share:.0f} %".replace("-", "−")


if __name__ == "__main__":
    main()
