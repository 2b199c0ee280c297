"""Results in JSON files beside the study: what is there is not computed again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hwsearch.store import read_json, write_json

HERE = Path(__file__).parent


def results(part):
    """Key -> result, of one part of the study."""
    path = HERE / f"{part}.json"
    return read_json(path) if path.exists() else {}


def remembered(part, key, make, *arguments):
    """What ``make(*arguments)`` returned, now or the first time."""
    if key not in results(part):
        found = make(*arguments)
        print(part, key, json.dumps(found), file=sys.stderr, flush=True)
        write_json(HERE / f"{part}.json", results(part) | {key: found})
    return results(part)[key]
