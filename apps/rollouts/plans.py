"""A plan as a value: what a rollout follows, checked when it is saved and frozen when it starts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from apps.lib.errors import Invalid
from apps.rollouts.checks import ERROR_RATE, LATENCY, SAMPLE_RATIO
from apps.rollouts.models import Plan

# Every check that a step may name, with what it asks.
CHECKS = {
    ERROR_RATE: "Does the canary fail for more units than stable, by more than the margin?",
    LATENCY: "Are more of the canary's answers slower than stable's usual p95 and p99?",
    SAMPLE_RATIO: "Did the canary get the share of traffic that was configured?",
}
ALL_CHECKS = tuple(CHECKS)
MINUTE_S = 60

DEFAULT_PLAN = "canary"
DEFAULT_WEIGHTS_BP = (500, 1_000, 2_500, 5_000, 10_000)
DEFAULT_BAKE_S = 30 * MINUTE_S


class StepDocument(msgspec.Struct, frozen=True, kw_only=True):
    weight_bp: int
    bake_s: int = DEFAULT_BAKE_S
    requests_min: int = 0
    checks: tuple[str, ...] = ALL_CHECKS


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A plan with its steps. Times in seconds; `time_scale_permille` applies to bakes only."""

    name: str
    steps: tuple[StepDocument, ...]
    time_scale_permille: int = 1_000
    interval_s: int = 10
    extend_max: int = 3
    margin_bp: int = 100
    alpha_ppm: int = 10_000
    reference_requests_min: int = 5_000
    latency_slack_us: int = 1_000

    def bake_of(self, step_index: int) -> timedelta:
        """Return how long a step bakes, scaled."""
        return timedelta(milliseconds=self.steps[step_index].bake_s * self.time_scale_permille)

    @property
    def guardrails(self) -> int:
        """How many checks may roll back: α of the whole rollout is shared among them."""
        named = {check for step in self.steps for check in step.checks}
        return max(1, len(named & {ERROR_RATE, LATENCY}))


def check_plan(plan: PlanDocument) -> None:
    """Raise Invalid unless the steps rise to at most 100 % and name known checks."""
    if not plan.steps:
        raise Invalid(f"Plan {plan.name!r} has no steps.")
    last = 0
    for number, step in enumerate(plan.steps, 1):
        if not 0 < step.weight_bp <= 10_000:
            raise Invalid(f"Step {number}: its share must lie above 0 and be at most 100 %.")
        if step.weight_bp <= last:
            raise Invalid(
                f"Step {number}: its share of {step.weight_bp / 100:g} % does not rise above "
                f"the {last / 100:g} % before it."
            )
        last = step.weight_bp
        for check in step.checks:
            if check not in CHECKS:
                known = ", ".join(CHECKS)
                raise Invalid(f"Step {number}: unknown check {check!r}. Known are: {known}.")


def document_of(plan: Plan) -> PlanDocument:
    """Return the plan as it now stands in the database."""
    return PlanDocument(
        name=plan.name,
        time_scale_permille=plan.time_scale_permille,
        interval_s=plan.interval_s,
        extend_max=plan.extend_max,
        margin_bp=plan.margin_bp,
        alpha_ppm=plan.alpha_ppm,
        reference_requests_min=plan.reference_requests_min,
        latency_slack_us=plan.latency_slack_us,
        steps=tuple(
            StepDocument(
                weight_bp=step.weight_bp,
                bake_s=step.bake_s,
                requests_min=step.requests_min,
                checks=tuple(step.checks),
            )
            for step in plan.steps.all()
        ),
    )


def to_json(plan: PlanDocument) -> dict[str, Any]:
    """Return the form that a rollout stores."""
    document: dict[str, Any] = msgspec.to_builtins(plan)
    return document


def from_json(document: dict[str, Any]) -> PlanDocument:
    """Return the plan that a rollout stored."""
    return msgspec.convert(document, PlanDocument)
