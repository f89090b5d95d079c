"""Plan templates that can be copied and edited, one for each strategy and a combination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from apps.rollouts.check_kinds import (
    DEFAULT_CHECKS,
    ERROR_RATE,
    LATENCY,
    SAMPLE_RATIO,
    SHADOW_AGREEMENT,
    SMOKE,
    UNANSWERED,
    CheckDocument,
)
from apps.rollouts.plans import (
    DEFAULT_BAKE_S,
    DEFAULT_HOLDBACK_BP,
    DEFAULT_PLAN,
    DEFAULT_WEIGHTS_BP,
    MINUTE_S,
    WHOLE_BP,
    PlanDocument,
    StepDocument,
)

HOUR_S = 60 * MINUTE_S


@dataclass(frozen=True)
class PlanTemplate:
    document: PlanDocument
    description: str


def _steps(*weights_bp: int, bake_s: int, requests_min: int = 0) -> tuple[StepDocument, ...]:
    return tuple(
        StepDocument(weight_bp=weight_bp, bake_s=bake_s, requests_min=requests_min)
        for weight_bp in weights_bp
    )


# The smoke check runs while the target gets only requests by its version number.
_SMOKE = StepDocument(weight_bp=0, bake_s=MINUTE_S, checks=(SMOKE,))
_SWITCH = StepDocument(weight_bp=WHOLE_BP, bake_s=0, checks=())
_COPY = StepDocument(weight_bp=0, shadow_bp=1_000, bake_s=30 * MINUTE_S, checks=(SHADOW_AGREEMENT,))
_SHADOW = msgspec.structs.replace(_COPY, gate="person")
_HALF = StepDocument(weight_bp=5_000, bake_s=30 * MINUTE_S, checks=DEFAULT_CHECKS, gate="person")

_RECORDED = CheckDocument(check=LATENCY, mode="dry-run")
_LITTLE = StepDocument(
    weight_bp=5_000,
    bake_s=24 * HOUR_S,
    checks=(ERROR_RATE, UNANSWERED, _RECORDED, SAMPLE_RATIO),
    gate="person",
)
# The final bake is the one at 95 %: the holdback stays the control to the end.
_HELD_BACK: dict[str, Any] = {
    "holdback_bp": DEFAULT_HOLDBACK_BP,
    "final_bake_s": DEFAULT_BAKE_S,
}

TEMPLATES = (
    PlanTemplate(
        PlanDocument(
            name=DEFAULT_PLAN,
            steps=_steps(*DEFAULT_WEIGHTS_BP, bake_s=DEFAULT_BAKE_S),
            **_HELD_BACK,
        ),
        "5 → 10 → 25 → 50 → 95 %, 30 minutes each. 5 % of the units stay on the previous version "
        "to the end, as a control.",
    ),
    PlanTemplate(
        PlanDocument(
            name="careful-canary",
            steps=_steps(100, 500, 1_000, 2_500, 5_000, bake_s=HOUR_S, requests_min=1_000)
            + _steps(WHOLE_BP, bake_s=HOUR_S, requests_min=1_000),
            control="equal",
            holdback_bp=100,
            final_bake_s=24 * HOUR_S,
        ),
        "1 → 5 → 10 → 25 → 50 → 99 %, 1 hour and 1,000 requests each, compared with a slice of "
        "stable of the same size. Then 1 day with a holdback of 1 % on the previous version.",
    ),
    PlanTemplate(
        PlanDocument(name="blue-green", steps=(_SMOKE, _SWITCH)),
        "Load the version, test it by its version number without other traffic, then switch at "
        "once. The previous version stays loaded for 1 day.",
    ),
    PlanTemplate(
        PlanDocument(name="shadow", steps=(_SHADOW, _SWITCH)),
        "Copy 10 % of the requests and compare the responses. A person approves 100 %.",
    ),
    PlanTemplate(
        PlanDocument(
            name="shadow-canary",
            steps=(
                _COPY,
                *_steps(500, 2_500, bake_s=30 * MINUTE_S),
                _HALF,
            ),
            **_HELD_BACK,
        ),
        "Compare shadow responses, then 5 → 25 → 50 %. A person approves 95 %, with a holdback of "
        "5 % on the previous version.",
    ),
    PlanTemplate(
        PlanDocument(
            name="little-traffic",
            steps=(_LITTLE,),
            margin_bp=500,
            wait_max_s=30 * 24 * HOUR_S,
            holdback_bp=DEFAULT_HOLDBACK_BP,
            final_bake_s=24 * HOUR_S,
        ),
        "For a few requests per hour: 50 % until 5 percentage points more errors are ruled out, up "
        "to 30 days. Latency is only recorded; a person reviews it and approves 95 %.",
    ),
)
