"""Plans as values: checked when they are saved, and frozen when a rollout starts."""

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
# The bake after these steps gives the target all traffic that is not held back.
DEFAULT_WEIGHTS_BP = (500, 1_000, 2_500, 5_000)
DEFAULT_BAKE_S = 30 * MINUTE_S
DEFAULT_HOLDBACK_BP = 500
# How long a step waits for missing data: low traffic is no reason to stop.
DEFAULT_WAIT_S = 7 * 24 * 3_600
HOLDBACK_LEAST_BP, HOLDBACK_MOST_BP = 100, 500
# The maximum number of check intervals in the bake time of a step: two hours at the default length.
INTERVALS_MAX = 720


class StepDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One step: the target's share of the traffic, or of copies, and the conditions to pass it.

    A person with `gate_role` on the model opens a `person` gate, once the checks pass.
    """

    weight_bp: int
    shadow_bp: int = 0
    bake_s: int = DEFAULT_BAKE_S
    requests_min: int = 0
    checks: tuple[str | CheckDocument, ...] = DEFAULT_CHECKS
    gate: Literal["automatic", "person"] = "automatic"
    gate_role: str = Role.OPERATOR.value
    # Whether this is the bake that a plan's `final_bake_s` adds after the last step.
    is_final_bake: bool = False

    @property
    def check_documents(self) -> tuple[CheckDocument, ...]:
        """The step's checks as documents."""
        return tuple(map(read_check, self.checks))


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A plan with its steps. Times are in seconds; `time_scale_permille` applies to bakes only."""

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
        """Return the scaled bake time of a step."""
        return timedelta(milliseconds=self.steps[step_index].bake_s * self.time_scale_permille)

    def interval_of(self, step_index: int) -> int:
        """Return the length of a step's check intervals, in seconds.

        Each evaluation reads all intervals so far, so that a long bake has longer ones.
        """
        bake_s = self.bake_of(step_index).total_seconds()
        return max(self.interval_s, math.ceil(bake_s / INTERVALS_MAX))

    def steps_with_check(self, label: str) -> int:
        """Return the number of steps with the check of that label, which share its α."""
        return sum(check.label == label for step in self.steps for check in step.check_documents)

    @property
    def guardrails(self) -> int:
        """The number of statistical guardrails, which share the α of the whole rollout."""
        named = {
            check.label
            for step in self.steps
            for check in step.check_documents
            if check.kind.spends_alpha and check.effective_mode == "guardrail"
        }
        return max(1, len(named))

    @property
    def needs_outcomes(self) -> bool:
        """Whether a check needs the exposures of units to versions."""
        return any(check.check == OUTCOME for step in self.steps for check in step.check_documents)

    @property
    def keeps_pairs(self) -> bool:
        """Whether a check needs the answers of stable and the shadow to the same requests."""
        return any(
            check.check == SHADOW_ACCURACY for step in self.steps for check in step.check_documents
        )

    def baseline_of(self, step_index: int) -> int:
        """Return the share of stable's units that the canary is compared with; 0 means all."""
        weight_bp = self.steps[step_index].weight_bp
        return min(weight_bp, WHOLE_BP - weight_bp) if self.control == "equal" else 0

    def as_followed(self) -> PlanDocument:
        """Return the plan as a rollout follows it: with the holdback and the final bake.

        Held-back units stay on stable until the end, so that the final bake has a control and no
        unit switches versions twice.
        """
        most = WHOLE_BP - self.holdback_bp
        replace = msgspec.structs.replace
        steps = [replace(step, weight_bp=min(step.weight_bp, most)) for step in self.steps]
        if self.final_bake_s:
            # It has the checks of the last step, without those that need copies.
            checks = tuple(c for c in steps[-1].check_documents if c.check != SHADOW_AGREEMENT)
            bake = {"bake_s": self.final_bake_s, "is_final_bake": True, "gate": "automatic"}
            steps.append(replace(steps[-1], weight_bp=most, shadow_bp=0, checks=checks, **bake))
        return replace(self, steps=tuple(steps))


def check_plan(plan: PlanDocument) -> None:
    """Raise Invalid unless shares never decrease, end above 0, and every check can be judged."""
    if not plan.steps:
        raise Invalid(f"Plan {plan.name!r} has no steps.")
    if plan.steps[-1].weight_bp == 0:
        raise Invalid(
            f"Step {len(plan.steps)}: the last step needs a share above 0 %; without traffic the "
            "target would be promoted untested."
        )
    last = 0
    for number, step in enumerate(plan.steps, 1):
        _check_step(f"Step {number}", step, last)
        last = step.weight_bp
    _check_pairs(plan)
    if plan.holdback_bp and not HOLDBACK_LEAST_BP <= plan.holdback_bp <= HOLDBACK_MOST_BP:
        raise Invalid("must be 0, or between 100 and 500 (1 % to 5 %).", field="holdback_bp")
    if plan.holdback_bp and not plan.final_bake_s:
        raise Invalid(
            "requires final_bake_s, since the share is held back for the final bake.",
            field="holdback_bp",
        )


def _check_step(where: str, step: StepDocument, last_bp: int) -> None:
    for share_bp, name in ((step.weight_bp, "share"), (step.shadow_bp, "shadow share")):
        if not 0 <= share_bp <= WHOLE_BP:
            raise Invalid(f"the {name} must be between 0 and 100 %.", field=where)
    if step.weight_bp < last_bp:
        raise Invalid(
            f"the share of {step.weight_bp / 100:g} % is below the "
            f"{last_bp / 100:g} % of the previous step.",
            field=where,
        )
    if step.gate not in {"automatic", "person"}:
        raise Invalid(
            f"unknown gate {step.gate!r}; expected one of automatic, person.", field=where
        )
    if step.gate_role not in Role.values:
        raise Invalid(
            f"unknown role {step.gate_role!r}; expected one of {', '.join(Role.values)}.",
            field=where,
        )
    if step.weight_bp == 0 and step.requests_min:
        raise Invalid("requests_min must be 0 where the target gets no traffic.", field=where)
    labels: set[str] = set()
    for check in step.check_documents:
        require_check(check, where)
        if check.label in labels:
            raise Invalid(
                f"two checks have the name {check.label}; set a unique name.", field=where
            )
        labels.add(check.label)
        if check.check == SHADOW_AGREEMENT and not step.shadow_bp:
            raise Invalid(f"{check.label} requires copied requests; set shadow_bp.", field=where)
        if step.weight_bp == 0 and check.check in OF_TRAFFIC and check.effective_mode != "dry-run":
            raise Invalid(
                f"{check.label} can never pass, since the target gets no traffic. "
                f"Use other checks, such as {SMOKE} or {SHADOW_AGREEMENT}, or none.",
                field=where,
            )


def _check_pairs(plan: PlanDocument) -> None:
    """Require that shadow accuracy is checked in a step with a shadow or in a later one."""
    is_copied = False
    for number, step in enumerate(plan.steps, 1):
        is_copied = is_copied or bool(step.shadow_bp)
        for check in step.check_documents:
            if check.check == SHADOW_ACCURACY and not is_copied:
                raise Invalid(
                    f"Step {number}: {check.label} requires answers of a shadow; set shadow_bp in "
                    "this step or in an earlier one."
                )


def document_of(plan: Plan) -> PlanDocument:
    """Return the current plan in the database."""
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
    """Return the JSON that a rollout stores."""
    document: dict[str, Any] = msgspec.to_builtins(plan)
    return document


def from_json(document: dict[str, Any]) -> PlanDocument:
    """Return the plan from the JSON of a rollout."""
    return msgspec.convert(document, PlanDocument)
