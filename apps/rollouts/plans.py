"""A plan as a value: what a rollout follows, checked when it is saved and frozen when it starts."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Literal

import msgspec

from apps.lib.errors import Invalid
from apps.models.models import Role
from apps.rollouts.check_kinds import (
    DEFAULT_CHECKS,
    OF_TRAFFIC,
    OUTCOME,
    SHADOW_ACCURACY,
    SHADOW_AGREEMENT,
    SMOKE,
    CheckDocument,
    read_check,
    require_check,
)
from apps.rollouts.checks import EvidenceMode
from apps.rollouts.models import Plan

MINUTE_S = 60
WHOLE_BP = 10_000

DEFAULT_PLAN = "canary"
# The bake after these steps gives the target all that is not held back.
DEFAULT_WEIGHTS_BP = (500, 1_000, 2_500, 5_000)
DEFAULT_BAKE_S = 30 * MINUTE_S
DEFAULT_HOLDBACK_BP = 500
# A step that lacks data waits for it this long: little traffic is no reason to stop.
DEFAULT_WAIT_S = 7 * 24 * 3_600
HOLDBACK_LEAST_BP, HOLDBACK_MOST_BP = 100, 500
# So many check intervals at most in the bake time of a step: two hours of the default ones.
INTERVALS_MAX = 720


class StepDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One step: the target's share of the traffic, or of copies of it, and what lets it pass.

    A `person` gate is opened by somebody with `gate_role` on the model, once the checks pass.
    """

    weight_bp: int
    shadow_bp: int = 0
    bake_s: int = DEFAULT_BAKE_S
    requests_min: int = 0
    checks: tuple[str | CheckDocument, ...] = DEFAULT_CHECKS
    gate: Literal["automatic", "person"] = "automatic"
    gate_role: str = Role.OPERATOR.value
    # The bake after the last step, which a plan's `final_bake_s` adds.
    is_final_bake: bool = False

    @property
    def questions(self) -> tuple[CheckDocument, ...]:
        """The step's checks as documents."""
        return tuple(map(read_check, self.checks))


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A plan with its steps. Times in seconds; `time_scale_permille` applies to bakes only."""

    name: str
    steps: tuple[StepDocument, ...]
    time_scale_permille: int = 1_000
    interval_s: int = 10
    extend_max: int = 3
    wait_max_s: int = DEFAULT_WAIT_S
    margin_bp: int = 100
    alpha_ppm: int = 10_000
    reference_requests_min: int = 5_000
    latency_slack_us: int = 1_000
    evidence_mode: EvidenceMode = "any_regression"
    control: Literal["all", "equal"] = "all"
    holdback_bp: int = 0
    final_bake_s: int = 0
    rollback_window_s: int = 86_400

    def bake_of(self, step_index: int) -> timedelta:
        """Return how long a step bakes, scaled."""
        return timedelta(milliseconds=self.steps[step_index].bake_s * self.time_scale_permille)

    def interval_of(self, step_index: int) -> int:
        """Return how long a step's check intervals are, in seconds.

        Each look goes over all intervals so far, so that a long bake has longer ones.
        """
        bake_s = self.bake_of(step_index).total_seconds()
        return max(self.interval_s, math.ceil(bake_s / INTERVALS_MAX))

    def steps_that_ask(self, label: str) -> int:
        """Return how many steps have the check of that label: those share its α."""
        return sum(check.label == label for step in self.steps for check in step.questions)

    @property
    def guardrails(self) -> int:
        """How many checks may roll back by a test: α of the whole rollout is shared among them."""
        named = {
            check.label
            for step in self.steps
            for check in step.questions
            if check.kind.spends_alpha and check.effective_mode == "guardrail"
        }
        return max(1, len(named))

    @property
    def asks_outcomes(self) -> bool:
        """Whether a check needs to know which units met which version."""
        return any(check.check == OUTCOME for step in self.steps for check in step.questions)

    @property
    def keeps_pairs(self) -> bool:
        """Whether a check needs what stable and the shadow answered to the same requests."""
        return any(
            check.check == SHADOW_ACCURACY for step in self.steps for check in step.questions
        )

    def baseline_of(self, step_index: int) -> int:
        """Return the share of units on stable that the canary is compared with, 0 for all."""
        weight_bp = self.steps[step_index].weight_bp
        return min(weight_bp, WHOLE_BP - weight_bp) if self.control == "equal" else 0

    def as_followed(self) -> PlanDocument:
        """Return the plan as a rollout goes through it: held back, and with its final bake.

        The units that are held back stay where they are until the end, so that the bake after the
        last step still has a control and nobody is moved back and forth.
        """
        most = WHOLE_BP - self.holdback_bp
        replace = msgspec.structs.replace
        steps = [replace(step, weight_bp=min(step.weight_bp, most)) for step in self.steps]
        if self.final_bake_s:
            # It is guarded like the last step, but for what would need copies.
            checks = tuple(c for c in steps[-1].questions if c.check != SHADOW_AGREEMENT)
            bake = {"bake_s": self.final_bake_s, "is_final_bake": True, "gate": "automatic"}
            steps.append(replace(steps[-1], weight_bp=most, shadow_bp=0, checks=checks, **bake))
        return replace(self, steps=tuple(steps))


def check_plan(plan: PlanDocument) -> None:
    """Raise Invalid unless the shares never fall, end above 0, and each check can be answered."""
    if not plan.steps:
        raise Invalid(f"Plan {plan.name!r} has no steps.")
    if plan.steps[-1].weight_bp == 0:
        raise Invalid(
            f"Step {len(plan.steps)}: the last step gives the target no traffic, so its promotion "
            "would come unproven; end with a share above 0 %."
        )
    last = 0
    for number, step in enumerate(plan.steps, 1):
        _check_step(f"Step {number}", step, last)
        last = step.weight_bp
    _check_pairs(plan)
    if plan.holdback_bp and not HOLDBACK_LEAST_BP <= plan.holdback_bp <= HOLDBACK_MOST_BP:
        raise Invalid("holdback_bp: hold back 1 % to 5 % (100 to 500), or nothing (0).")
    if plan.holdback_bp and not plan.final_bake_s:
        raise Invalid("holdback_bp: a share is held back for the final bake; set final_bake_s.")


def _check_step(where: str, step: StepDocument, last_bp: int) -> None:
    for share_bp, what in ((step.weight_bp, "share"), (step.shadow_bp, "shadow's share")):
        if not 0 <= share_bp <= WHOLE_BP:
            raise Invalid(f"{where}: its {what} must lie between 0 and 100 %.")
    if step.weight_bp < last_bp:
        raise Invalid(
            f"{where}: its share of {step.weight_bp / 100:g} % falls below the "
            f"{last_bp / 100:g} % before it."
        )
    if step.gate not in {"automatic", "person"}:
        raise Invalid(f"{where}: unknown gate {step.gate!r}. Known are: automatic, person.")
    if step.gate_role not in Role.values:
        raise Invalid(
            f"{where}: unknown role {step.gate_role!r}. Known are: {', '.join(Role.values)}."
        )
    if step.weight_bp == 0 and step.requests_min:
        raise Invalid(f"{where}: it gives the target no traffic, so requests_min must be 0.")
    labels: set[str] = set()
    for check in step.questions:
        require_check(check, where)
        if check.label in labels:
            raise Invalid(f"{where}: two checks are called {check.label}; name one of them.")
        labels.add(check.label)
        if check.check == SHADOW_AGREEMENT and not step.shadow_bp:
            raise Invalid(f"{where}: {check.label} needs copies to compare; set shadow_bp.")
        if step.weight_bp == 0 and check.check in OF_TRAFFIC and check.effective_mode != "dry-run":
            raise Invalid(
                f"{where}: it gives the target no traffic, so {check.label} could never pass. "
                f"Name other checks, such as {SMOKE} or {SHADOW_AGREEMENT}, or none."
            )


def _check_pairs(plan: PlanDocument) -> None:
    """The truth may come in a later step than the answers, but not in an earlier one."""
    is_copied = False
    for number, step in enumerate(plan.steps, 1):
        is_copied = is_copied or bool(step.shadow_bp)
        for check in step.questions:
            if check.check == SHADOW_ACCURACY and not is_copied:
                raise Invalid(
                    f"Step {number}: {check.label} needs answers of a shadow; set shadow_bp in "
                    "this step or in an earlier one."
                )


def document_of(plan: Plan) -> PlanDocument:
    """Return the plan as it now stands in the database."""
    settings = {name: getattr(plan, name) for name in plan_settings()}
    steps = [{name: getattr(step, name) for name in step_settings()} for step in plan.steps.all()]
    return msgspec.convert({**settings, "steps": steps}, PlanDocument)


def plan_settings() -> tuple[str, ...]:
    """Return the fields of a plan without its steps; the table's columns have the same names."""
    return tuple(name for name in PlanDocument.__struct_fields__ if name != "steps")


def step_settings() -> tuple[str, ...]:
    """Return the fields of a step that people set; the table's columns have the same names."""
    return tuple(name for name in StepDocument.__struct_fields__ if name != "is_final_bake")


def to_json(plan: PlanDocument) -> dict[str, Any]:
    """Return the form that a rollout stores."""
    document: dict[str, Any] = msgspec.to_builtins(plan)
    return document


def from_json(document: dict[str, Any]) -> PlanDocument:
    """Return the plan that a rollout stored."""
    return msgspec.convert(document, PlanDocument)
