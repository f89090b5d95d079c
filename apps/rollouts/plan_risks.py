"""Estimates the error rates of a plan: false rollbacks, and passes of worse versions.

Statistical checks have bounds that hold at every look. A threshold has none: its rates are
simulated for the plan. The error rates of Prometheus and webhook checks are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apps.rollouts.check_kinds import ERROR_THRESHOLD, SAMPLE_RATIO, CheckDocument, Mode
from apps.rollouts.checks import CheckSettings
from apps.rollouts.plans import WHOLE_BP, PlanDocument, StepDocument
from apps.rollouts.thresholds import rollback_rate

# The source of a figure: a theorem bounds it, the plan was simulated, or it is unknown.
Basis = Literal["bounded", "simulated", "unknown"]

# More looks change the figures little, and slow the page down.
LOOKS_MAX = 120


@dataclass(frozen=True)
class CheckRisk:
    """The risks of one check over all of its steps, as fractions; None where unknown.

    `false_rollback` is of a version that is as good as stable, or within an absolute bound;
    `false_pass` of one that is worse by exactly the margin, or exactly at the bound; the sample
    ratio has none. A check that only pauses or records has no false rollbacks.
    """

    name: str
    kind: str
    mode: Mode
    basis: Basis
    false_rollback: float | None
    false_pass: float | None


@dataclass(frozen=True)
class PlanRisks:
    """The risks of each check, in the plan's order."""

    checks: tuple[CheckRisk, ...]

    @property
    def false_rollback(self) -> float | None:
        """The largest share of healthy versions rolled back: the sum over the checks (Boole).

        None if a check that may roll back has an unknown risk.
        """
        known = [check.false_rollback for check in self.checks]
        return None if None in known else min(1.0, sum(one for one in known if one is not None))

    @property
    def unknown(self) -> tuple[str, ...]:
        """The checks whose error rates are unknown."""
        return tuple(check.name for check in self.checks if check.basis == "unknown")


def risks_of_plan(plan: PlanDocument) -> PlanRisks:
    """Return the risks of `plan`, thresholds included.

    Thresholds are simulated with error rates of 1 % and 250 requests between looks.
    """
    checks = {check.label: check for step in plan.steps for check in step.check_documents}
    return PlanRisks(tuple(_risk(plan, check) for check in checks.values()))


def _risk(plan: PlanDocument, check: CheckDocument) -> CheckRisk:
    can_roll_back = check.effective_mode == "guardrail"
    false_rollback: float | None
    false_pass: float | None
    basis: Basis
    if check.kind.spends_alpha:
        settings = CheckSettings(alpha=plan.alpha_ppm / 1_000_000)
        basis, false_pass = "bounded", settings.alpha_promote
        false_rollback = settings.alpha / max(1, plan.guardrails)
    elif check.check == SAMPLE_RATIO:
        # An undetected mismatch passes no worse version: other checks judge that.
        basis, false_rollback, false_pass = "bounded", 0.0, None
    elif check.check == ERROR_THRESHOLD:
        steps = [step for step in plan.steps if check in step.check_documents]
        basis = "simulated"
        false_rollback = _threshold(plan, check, steps, surplus=0.0)
        margin = int(check.setting("margin_bp")) / WHOLE_BP
        false_pass = 1.0 - _threshold(plan, check, steps, surplus=margin)
    else:
        basis, false_rollback, false_pass = "unknown", None, None
    if not can_roll_back:
        false_rollback = 0.0
    return CheckRisk(
        check.label, check.check, check.effective_mode, basis, false_rollback, false_pass
    )


def _threshold(
    plan: PlanDocument, check: CheckDocument, steps: list[StepDocument], *, surplus: float
) -> float:
    scale = plan.time_scale_permille / 1_000
    looks = max((round(step.bake_s * scale / plan.interval_s) for step in steps), default=1)
    return rollback_rate(
        tuple(step.weight_bp for step in steps),
        surplus=surplus,
        margin_bp=int(check.setting("margin_bp")),
        samples_min=int(check.setting("samples_min")),
        looks_per_step=min(LOOKS_MAX, max(1, looks)),
    )
