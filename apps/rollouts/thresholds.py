"""Compares error rates with a plain threshold, not a test, and simulates its false alarms.

Frequent looks exceed any threshold by chance. The rule exists for people who want it, and pages
show the false alarms of their own plan beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from apps.rollouts.check_kinds import ERROR_THRESHOLD
from apps.rollouts.checks import SHARE_WHOLE_BP
from apps.rollouts.eprocess import BucketCounts, Counts, Flags, columns_of
from apps.rollouts.verdicts import JSON, CheckResult, Verdict, format_percent

SAMPLES_MIN = 250
# The typical plan: its steps, the looks per step, and the requests between two looks.
TYPICAL_STEPS_BP = (500, 1_000, 2_500, 5_000, 9_500)
LOOKS_PER_STEP = 40
REQUESTS_PER_LOOK = 250
USUAL_ERROR_RATE = 0.01
RUNS = 1_000
SEED = 20_260_000


def judge_error_threshold(
    buckets: Sequence[BucketCounts], *, margin_bp: int, samples_min: int = SAMPLES_MIN
) -> CheckResult:
    """Fail if the canary's observed error rate exceeds the control's by more than the margin.

    `buckets` are those of one step: the share is constant, so that their sums may be compared. The
    rule does not control its errors: `false_alarm_rate` simulates how often it rolls back a healthy
    canary. `samples_min` exposures are needed on each side.
    """
    both = [b for b in buckets if b.canary_n and b.control_n]
    canary_n, control_n = sum(b.canary_n for b in both), sum(b.control_n for b in both)
    canary_events = sum(b.canary_events for b in both)
    control_events = sum(b.control_events for b in both)
    record: dict[str, JSON] = {
        "canary_n": canary_n,
        "canary_events": canary_events,
        "control_n": control_n,
        "control_events": control_events,
        "margin_bp": margin_bp,
    }
    if not both:
        reason = "no exposures of canary and stable in the same interval"
        return CheckResult(ERROR_THRESHOLD, Verdict.NO_DATA, reason, record)
    canary_rate, control_rate = canary_events / canary_n, control_events / control_n
    record |= {"canary_rate": canary_rate, "control_rate": control_rate}
    reason = (
        f"error rate {format_percent(canary_rate)} on the canary, {format_percent(control_rate)} "
        f"on stable, margin {margin_bp / 100:g} %, after {canary_n:,} exposures of the canary"
    )
    if min(canary_n, control_n) < samples_min:
        reason = f"{reason}: {samples_min:,} exposures of each version are needed"
        return CheckResult(ERROR_THRESHOLD, Verdict.INSUFFICIENT_SAMPLE, reason, record)
    # In whole numbers, so that a difference of exactly the margin never exceeds it by rounding.
    surplus = canary_events * control_n - control_events * canary_n
    beyond = surplus * SHARE_WHOLE_BP > margin_bp * canary_n * control_n
    verdict = Verdict.FAIL if beyond else Verdict.PASS
    return CheckResult(ERROR_THRESHOLD, verdict, f"{reason} (a comparison, not a test)", record)


def beyond_threshold(counts: Counts, *, margin: float, samples_min: int) -> Flags:
    """Return at which looks of a step the rule fails: the same rule for many simulated runs."""
    sums = [np.cumsum(column, axis=-1) for column in columns_of(counts)]
    canary_n, canary_events, control_n, control_events = sums
    surplus = canary_events * control_n - control_events * canary_n
    enough = np.minimum(canary_n, control_n) >= max(samples_min, 1)
    result: Flags = enough & (surplus > margin * canary_n * control_n)
    return result


def false_alarm_rate(
    steps_bp: tuple[int, ...] = TYPICAL_STEPS_BP,
    *,
    margin_bp: int = 100,
    error_rate: float = USUAL_ERROR_RATE,
    samples_min: int = SAMPLES_MIN,
) -> float:
    """Return the simulated share of rollouts of a *healthy* canary that the rule rolls back."""
    return rollback_rate(
        steps_bp, margin_bp=margin_bp, error_rate=error_rate, samples_min=samples_min
    )


@lru_cache(maxsize=64)
def rollback_rate(
    steps_bp: tuple[int, ...],
    *,
    surplus: float = 0.0,
    margin_bp: int = 100,
    error_rate: float = USUAL_ERROR_RATE,
    samples_min: int = SAMPLES_MIN,
    looks_per_step: int = LOOKS_PER_STEP,
    requests_per_look: int = REQUESTS_PER_LOOK,
) -> float:
    """Return the simulated share of rollouts that the rule rolls back.

    Stable has the error rate `error_rate`, the canary `surplus` more; the plan's steps have the
    shares `steps_bp` and a look after every `requests_per_look` requests. Steps without a control
    are left out. The seed is fixed: the same plan always gets the same figure, with an error of
    about 1.5 percentage points.
    """
    rng = np.random.default_rng(SEED)
    is_failed = np.zeros(RUNS, dtype=bool)
    for share_bp in steps_bp:
        if not 0 < share_bp < SHARE_WHOLE_BP:
            continue
        shape = (RUNS, looks_per_step)
        canary_n = rng.binomial(requests_per_look, share_bp / SHARE_WHOLE_BP, shape)
        control_n = requests_per_look - canary_n
        canary_events = rng.binomial(canary_n, min(1.0, error_rate + surplus))
        control_events = rng.binomial(control_n, error_rate)
        columns = (canary_n, canary_events, control_n, control_events)
        counts = Counts(*(column.astype(np.float64) for column in columns))
        is_failed |= beyond_threshold(
            counts, margin=margin_bp / SHARE_WHOLE_BP, samples_min=samples_min
        ).any(axis=-1)
    return float(is_failed.mean())
