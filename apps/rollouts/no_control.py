"""Judges checks that compare with stable in steps at 100 %, where stable gets no traffic.

A version at 100 % has no control over the same seconds. Stable's values from the start of the
rollout are no substitute: between night and noon error rates and latencies of every version change
by more than any margin. So absolute objectives decide, or a person; a circuit breaker's trip still
rolls the version back automatically.
"""

from __future__ import annotations

from collections.abc import Iterator

from apps.rollouts.check_kinds import (
    ERROR_OBJECTIVE,
    ERROR_RATE,
    ERROR_THRESHOLD,
    LATENCY,
    LATENCY_OBJECTIVE,
    UNANSWERED,
)
from apps.rollouts.plans import WHOLE_BP, PlanDocument, StepDocument
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

# The checks that compare with stable, and the absolute objective that replaces each.
OBJECTIVE_OF = {
    ERROR_RATE: ERROR_OBJECTIVE,
    ERROR_THRESHOLD: ERROR_OBJECTIVE,
    UNANSWERED: ERROR_OBJECTIVE,
    LATENCY: LATENCY_OBJECTIVE,
}


def deciders_of(step: StepDocument, check: str) -> tuple[str, ...]:
    """Return what decides in place of `check` in a step without a control; empty if nothing does.

    These are the absolute objectives of the same kind that can hold a step, and the gate's person.
    """
    objectives = [
        each.label
        for each in step.check_documents
        if each.check == OBJECTIVE_OF[check] and each.effective_mode != "dry-run"
    ]
    gate = [f"the person who opens the gate ({step.gate_role})"] if step.gate == "person" else []
    return (*objectives, *gate)


def judge_without_control(
    check: str, *, n: int, errors: int, deciders: tuple[str, ...]
) -> CheckResult:
    """Judge a comparison without a control: it never fails, and passes if something else decides.

    `n` and `errors` are the canary's in this step. Without deciders no data can change the verdict.
    """
    basis = "stable gets no traffic to compare with"
    names: list[JSON] = list(deciders)
    evidence: dict[str, JSON] = {"n": n, "errors": errors, "absolute": True, "deciders": names}
    if n == 0:
        return CheckResult(
            check, Verdict.NO_DATA, f"no exposures of the canary, and {basis}", evidence
        )
    event = "were left without an answer" if check == UNANSWERED else "failed"
    counts = f"{n:,} exposures" if check == LATENCY else f"{errors:,} of {n:,} exposures {event}"
    if deciders:
        reason = f"{counts}, but {basis}: decided by {' and '.join(deciders)}"
        return CheckResult(check, Verdict.PASS, reason, evidence)
    reason = f"{counts}, but {basis} and the step has no {OBJECTIVE_OF[check]}: a person decides"
    return CheckResult(check, Verdict.INCONCLUSIVE, reason, evidence, is_decidable=False)


def notices_of(plan: PlanDocument) -> list[str]:
    """Return the notices about a plan's steps without a control."""
    steps = enumerate(plan.as_followed().steps, 1)
    return [
        f"Step {number} gives the target all traffic, so that stable gets none to compare with: "
        f"{sentence}"
        for number, step in steps
        if step.weight_bp == WHOLE_BP
        for sentence in _meanings(step)
    ]


def _meanings(step: StepDocument) -> Iterator[str]:
    if not step.check_documents:
        yield (
            "it has no checks either, so that only time, a person or a circuit breaker ends it."
            if step.bake_s
            else "it has no checks and no bake time, so that it passes immediately."
        )
    compared = [c.check for c in step.check_documents if c.effective_mode != "dry-run"]
    undecided = [c for c in OBJECTIVE_OF if c in compared and not deciders_of(step, c)]
    for check in (c for c in OBJECTIVE_OF if c in compared and c not in undecided):
        yield f"{' and '.join(deciders_of(step, check))} decides in place of {check}."
    if undecided:
        needed = " and ".join(dict.fromkeys(OBJECTIVE_OF[check] for check in undecided))
        yield (
            f"{' and '.join(undecided)} cannot decide, so that it pauses for a person after its "
            f"bake time. Hold back 1 to 5 % of the units (holdback_bp, final_bake_s) to keep a "
            f"control, or add {needed}."
        )
