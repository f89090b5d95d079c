"""What the checks that compare with stable may say where nobody is left on stable: nothing.

A version at 100 % has no control over the same seconds. What was usual when the rollout began is no
substitute: between night and noon error rates and latencies change by more than any margin, for
every version. So absolute objectives decide there, or a person; a circuit breaker's trip still
takes the version back by itself.
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

# The checks that compare with stable, and which absolute bound answers in the place of each.
OBJECTIVE_OF = {
    ERROR_RATE: ERROR_OBJECTIVE,
    ERROR_THRESHOLD: ERROR_OBJECTIVE,
    UNANSWERED: ERROR_OBJECTIVE,
    LATENCY: LATENCY_OBJECTIVE,
}


def deciders_of(step: StepDocument, check: str) -> tuple[str, ...]:
    """Return who decides in place of `check` in a step without a control; empty: nobody does.

    That is each absolute objective of the same kind that lets a step pass, and the gate's person.
    """
    objectives = [
        each.label
        for each in step.questions
        if each.check == OBJECTIVE_OF[check] and each.effective_mode != "dry-run"
    ]
    gate = [f"the person who opens the gate ({step.gate_role})"] if step.gate == "person" else []
    return (*objectives, *gate)


def judge_without_control(
    check: str, *, n: int, errors: int, deciders: tuple[str, ...]
) -> CheckResult:
    """Answer a comparison that has nothing to compare with: never fail, and pass to who decides.

    `n` and `errors` are the canary's in this step. Without deciders no data could ever decide it.
    """
    basis = "nobody is left on stable to compare with"
    names: list[JSON] = list(deciders)
    evidence: dict[str, JSON] = {"n": n, "errors": errors, "absolute": True, "deciders": names}
    if n == 0:
        return CheckResult(check, Verdict.NO_DATA, f"{basis}; no exposures", evidence)
    what = "were left without an answer" if check == UNANSWERED else "failed"
    counts = f"{n} exposures" if check == LATENCY else f"{errors} of {n} exposures {what}"
    if deciders:
        reason = f"{basis} ({counts}): left to {' and '.join(deciders)}"
        return CheckResult(check, Verdict.PASS, reason, evidence)
    reason = f"{basis} ({counts}), and the step has no {OBJECTIVE_OF[check]}: a person decides"
    return CheckResult(check, Verdict.INCONCLUSIVE, reason, evidence, is_decidable=False)


def notices_of(plan: PlanDocument) -> list[str]:
    """Return in sentences what a plan's steps without a control mean for who follows it."""
    steps = enumerate(plan.as_followed().steps, 1)
    return [
        f"Step {number} gives the target all traffic, so that nobody is left on stable to compare "
        f"with: {sentence}"
        for number, step in steps
        if step.weight_bp == WHOLE_BP
        for sentence in _meanings(step)
    ]


def _meanings(step: StepDocument) -> Iterator[str]:
    if not step.questions:
        yield (
            "it has no checks either, so that only time, a person or a circuit breaker ends it."
            if step.bake_s
            else "it has no checks and no bake time, so that it is passed at once."
        )
    compared = [c.check for c in step.questions if c.effective_mode != "dry-run"]
    undecided = [c for c in OBJECTIVE_OF if c in compared and not deciders_of(step, c)]
    for check in (c for c in OBJECTIVE_OF if c in compared and c not in undecided):
        yield f"{check} is left to {' and '.join(deciders_of(step, check))}."
    if undecided:
        needed = " and ".join(dict.fromkeys(OBJECTIVE_OF[check] for check in undecided))
        yield (
            f"{' and '.join(undecided)} cannot decide, and once its bake time is over it pauses "
            f"for a person. Hold back 1 to 5 % of the units (holdback_bp, final_bake_s) to keep "
            f"comparing, or add {needed}."
        )
