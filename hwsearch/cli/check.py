"""``hwsearch check``: load model and data, trace, and say what would be searched and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwsearch.cli.output import flags, next_step, print_facts, print_json, print_text
from hwsearch.cli.verb import Settings, StudyPath, verb
from hwsearch.config import load_study
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.search.prepare import Plan


@verb
def check(study: StudyPath, settings: Settings = None) -> None:
    """Check a study without searching: model, data, targets, and what each target refuses."""
    from hwsearch.search.prepare import plan_study

    plans = plan_study(load_study(study, settings or ()))
    if flags().json:
        print_json({"plans": [to_json(plan) for plan in plans]})
        return
    for plan in plans:
        print_plan(plan)
    next_step("hwsearch", "search", study)


def print_plan(plan: Plan) -> None:
    """Print what a search of one target would cover, and what it would not offer."""
    print_facts(
        {
            "target": plan.target,
            "layers": str(plan.layers),
            "prune groups": str(plan.groups),
            "droppable branches": str(plan.branches),
            "choices": f"{plan.dimensions} dimensions, about 10^{plan.space_log10_size:.0f} models",
            "evaluations": str(plan.evaluations),
        }
    )
    print_text("".join(f"refused: {reason}\n" for reason in plan.refused))
