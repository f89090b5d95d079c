"""The plain threshold on error rates: a comparison, not a test, and how often it is wrong.

Whoever looks often enough sees any difference. The rule stays for people who want it, with the
false alarms of their own plan beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from apps.rollouts.check_kinds import ERROR_THRESHOLD
from apps.rollouts.checks import SHARE_WHOLE_BP
from apps.rollouts.eprocess import BucketCounts, Counts, Flags, columns_of
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

SAMPLES_MIN = 250
# The typical plan: its steps, how often each is looked at, and how many requests come in between.
TYPICAL_STEPS_BP = (500, 1_000, 2_500, 5_000, 9_500)
LOOKS_PER_STEP = 40
REQUESTS_PER_LOOK = 250
USUAL_ERROR_RATE = 0.01
RUNS = 1_000
SEED = 20_260_000


def judge_error_threshold(
    buckets: Sequence[BucketCounts], *, margin_bp: int, samples_min: int = SAMPLES_MIN
) -> CheckResult:
    """Fail where the canary's observed error rate exceeds control's by more than the margin.

    `buckets` are those of one step: with one share throughout, their sums may be compared. This is
    the usual rule of thumb without any control of its errors: see `false_alarm_rate` for how
    often it rolls back a healthy canary. `samples_min` exposures are needed on each side.
    """
    seen = [b for b in buckets if b.canary_n and b.control_n]
    canary_n, control_n = sum(b.canary_n for b in seen), sum(b.control_n for b in seen)
    canary_events = sum(b.canary_events for b in seen)
    control_events = sum(b.control_events for b in seen)
    record: dict[str, JSON] = {
        "canary_n": canary_n,
        "canary_events": canary_events,
        "control_n": control_n,
        "control_events": control_events,
        "margin_bp": margin_bp,
    }
    if not seen:
        told = "no exposures of canary and stable over the same seconds"
        return CheckResult(ERROR_THRESHOLD, Verdict.NO_DATA, told, record)
    canary_rate, control_rate = canary_events / canary_n, control_events / control_n
    record |= {"canary_rate": canary_rate, "control_rate": control_rate}
    told = (
        f"observed error rate {canary_rate:.2%} vs stable {control_rate:.2%}, "
        f"at most {margin_bp / 100:g} points more, n={canary_n}"
    )
    if min(canary_n, control_n) < samples_min:
        told = f"{told}: {samples_min} exposures of each are needed"
        return CheckResult(ERROR_THRESHOLD, Verdict.INSUFFICIENT_SAMPLE, told, record)
    # In whole numbers, so that a difference of exactly the margin never exceeds it by rounding.
    surplus = canary_events * control_n - control_events * canary_n
    beyond = surplus * SHARE_WHOLE_BP > margin_bp * canary_n * control_n
    verdict = Verdict.FAIL if beyond else Verdict.PASS
    return CheckResult(ERROR_THRESHOLD, verdict, f"{told} (a comparison, not a test)", record)


def beyond_threshold(counts: Counts, *, margin: float, samples_min: int) -> Flags:
    """After which of one step's looks the rule fails: the same rule for many simulated runs."""
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
    """The share of rollouts of a *healthy* canary that the rule would roll back, simulated."""
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
    """The share of rollouts that the rule would roll back, simulated.

    Stable errs at `error_rate` and the canary at `surplus` more; the plan's steps have shares
    `steps_bp` and are looked at each time `requests_per_look` more requests have come. Steps
    without a control are left out. Seeded: the same plan always gets the same figure, which is
    exact to some 1.5 points.
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
