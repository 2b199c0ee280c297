"""The tables of README.md, out of the JSON files beside it."""

from __future__ import annotations

import statistics

from data import SCENES
from results import HERE, results
from stream import SCENES as STREAMED
from stream import SEVERITIES, SHIFTED

PLACE = "<!-- figures -->", "<!-- end of figures -->"
NAMES = {"repadapter": "RepAdapter", "lora": "LoRA", "full": "full tuning", "probe": "linear probe"}


def main():
    body = "\n\n".join(part() for part in (ladder, adapters, latencies, drift, forgetting, harm, deployed))
    readme = HERE / "README.md"
    text, (start, end) = readme.read_text(), PLACE
    before, after = text.split(start)[0], text.split(end)[1]
    readme.write_text(f"{before}{start}\n{body}\n{end}{after}")
    print(body)


def ladder():
    found, rows = results("ladder"), []
    for suite, names in SCENES.items():
        here = {name: found[f"{suite}/{name}"] for name in names if f"{suite}/{name}" in found}
        rows += [
            [
                f"{suite}/{name}",
                top1(row["clean"]),
                top1(row["before"]),
                top1(row["after"]),
                f"{row['after'] / row['before']:.2f}",
                ", ".join(row["kept"]) or "none",
                str(row["labels_needed"]),
                f"{row['cpu_seconds']:.0f}",
                str(row["judged_on"]),
            ]
            for name, row in here.items()
        ]
        rows.append(mean(f"*mean of {suite}*", here.values()))
    rows.append(mean("**mean of all**", found.values()))
    return "**The ladder**\n\n" + table(
        ["scene", "clean", "unadapted", "after", "times", "rungs that stayed", "labels", "CPU s", "images"],
        rows,
    )


def mean(name, rows):
    before, after = (statistics.mean(row[key] for row in rows) for key in ("before", "after"))
    return [name, "", top1(before), top1(after), f"{after / before:.2f}", *[""] * 4]


def adapters():
    found, full = results("adapters"), results("adapters")["full"]
    rows = [
        [
            NAMES[name],
            f"{row['trained_parameters']:,}",
            f"{row['stored_bytes'] / 1024:.0f}",
            f"{row['cpu_seconds']['mean']:.1f} ± {row['cpu_seconds']['sd']:.1f}",
            f"{row['kept_mib_batch_64']:.0f}",
            f"{row['accuracy']['mean']:.3f} ± {row['accuracy']['sd']:.3f}",
            f"{row['lr']:g}",
        ]
        for name, row in found.items()
        if name in NAMES
    ]
    untuned, ours = found["untuned"], found["repadapter"]
    saved = {
        "storage": 1 - ours["stored_bytes"] / full["stored_bytes"],
        "CPU time": 1 - ours["cpu_seconds"]["mean"] / full["cpu_seconds"]["mean"],
        "memory": 1 - ours["kept_mib_batch_64"] / full["kept_mib_batch_64"],
    }
    said = ", ".join(f"{abs(share):.0%} {'less' if share > 0 else 'more'} {what}" for what, share in saved.items())
    return (
        f"**Few-label tuning of a transformer**; untuned {untuned['mean']:.3f} ± {untuned['sd']:.3f}\n\n"
        + table(["", "weights trained", "KiB stored", "CPU s", "MiB kept", "top-1", "learning rate"], rows)
        + f"\n\nAgainst full tuning RepAdapter takes {said}."
    )


def latencies():
    found, rows = results("adapters")["latency_ms"], []
    for name in ("vit", "resnet20"):
        base, merged, left = (found[f"{name}-{form}"] for form in ("base", "merged", "adapters"))
        rows.append([name, f"{base:.3f}", f"{merged:.3f}", f"{left:.3f}", f"{merged / base:.3f}"])
    return "**Latency in ONNX Runtime**, ms, one thread, in turns\n\n" + table(
        ["", "base", "merged", "adapters left in", "merged / base"], rows
    )


def drift():
    parts = parts_of("drift")
    alarms, windows = (sum(part[key] for part in parts) for key in ("false_alarms", "windows"))
    kinds = dict.fromkeys(key.split()[0] for key in parts[0]["delays"])
    rows = [[kind, *(delays(parts, f"{kind} {severity}") for severity in SEVERITIES)] for kind in kinds]
    return (
        f"**Windows until drift is noticed**, of {SHIFTED}, in {len(parts)} streams; "
        f"false alarms in {windows} clean windows: {alarms}\n\n"
        + table(["", *(f"strength {severity}" for severity in SEVERITIES)], rows)
    )


def delays(parts, shift):
    return ", ".join(str(part["delays"][shift] or "no") for part in parts)


def forgetting():
    rows = []
    for memory in ("none", "ewc", "replay"):
        parts = parts_of(f"forgetting, {memory}")
        last = [statistics.mean(part["accuracies"][-1][i] for part in parts) for i in range(len(STREAMED))]
        rows.append([
            memory,
            spread([part["forgetting"] for part in parts]),
            spread([part["backward_transfer"] for part in parts]),
            *(top1(value) for value in last),
            spread([part["clean"][-1] for part in parts]),
            spread([statistics.mean(part["accuracies"][-1]) for part in parts]),
            f"{statistics.mean(part['cpu_seconds'] for part in parts) / len(STREAMED):.0f}",
        ])  # fmt: skip
    start = parts_of("forgetting, none")[0]
    unadapted = [top1(value) for value in start["unadapted"]]
    before = top1(statistics.mean(start["unadapted"]))
    rows.append(["unadapted", "", "", *unadapted, top1(start["unadapted_clean"]), before, ""])
    return f"**After {', '.join(STREAMED)} in turn**, no gate\n\n" + table(
        ["memory", "forgetting", "backward transfer", *STREAMED, "clean", "mean of scenes", "CPU s an update"], rows
    )


def harm():
    rows = []
    for name in ("gate", "no gate"):
        found = [part[name] for part in parts_of("harm")]
        clean, same = ([part[key] for part in found] for key in ("clean", "same_answers"))
        rows.append([name, ", ".join(part["update"] for part in found), spread(clean), "yes" if all(same) else "no"])
    return "**An update on shuffled labels**\n\n" + table(["", "update", "clean", "same answers as before"], rows)


def deployed():
    rows = []
    for key, row in results("deployed").items():
        target, scene, means = key.split(", ")
        tried = [event for event in row.get("events", ()) if event["update"]]
        rows.append([
            target,
            scene,
            f"{means}: {', '.join(event['update'] for event in tried)}" if tried else means,
            *(f"{top1(one)} → {top1(other)}" for one, other in (row["scene"], row["clean"])),
            ", ".join(f"{ratio:.3f}" for ratio in row["latency_ratios"]),
            "yes" if row["verified"] else "no",
        ])  # fmt: skip
    return "**The shipped file before and after**\n\n" + table(
        ["target", "scene", "updated by", "top-1 in the scene", "on clean images", "latency ratios", "verifies"], rows
    )


def parts_of(name):
    return [row for key, row in results("stream").items() if key.rpartition(" ")[0] == name]


def top1(value):
    return "" if value is None else f"{value:.3f}".lstrip("0")


def spread(values):
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def table(headers, rows):
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
