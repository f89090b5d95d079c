"""Sequential readings: confidence sequences, which are valid at any number of looks.

They start once the sample is large enough for the normal approximation that they use.
"""

from __future__ import annotations

import math

from apps.experiments.stats.comparison import Difference, Reading, State, read_at

METHOD = "sequential"
UNITS_MIN = 100
EVENTS_MIN = 10
EXPECTED_MIN = 3.0
# The size that the interval is tuned to if no size is planned.
PLANNED_UNITS_DEFAULT = 10_000


def sequential_wait_reason(
    control_n: int, n: int, events: tuple[int, int] | None = None
) -> str | None:
    """Return why no sequential reading is possible yet, or None.

    `events` are those of control and treatment, for a rate.
    """
    smaller = min(control_n, n)
    if smaller < UNITS_MIN:
        return f"each arm needs at least {UNITS_MIN} units (the smaller has {smaller})"
    return None if events is None else few_events_reason(control_n, n, events)


def few_events_reason(control_n: int, n: int, events: tuple[int, int]) -> str | None:
    """Return why a rate has too few events or non-events for the normal approximation, or None."""
    smaller, total, pooled = min(control_n, n), control_n + n, sum(events)
    rarer = min(pooled, total - pooled)
    if rarer < EVENTS_MIN:
        return f"at least {EVENTS_MIN} events and non-events are needed ({rarer} so far)"
    expected = smaller * (rarer / total)
    if expected < EXPECTED_MIN:
        missing = more_units(smaller * (EXPECTED_MIN / expected - 1.0))
        kind = "events" if pooled == rarer else "non-events"
        return (
            f"the smaller arm expects only {expected:.1f} {kind}, {EXPECTED_MIN:.0f} are needed: "
            f"{missing} in it"
        )
    return None


def more_units(missing: float) -> str:
    """Format the number of missing units, rounded up to two digits."""
    step = 10 ** max(0, math.floor(math.log10(max(missing, 1.0))) - 1)
    rounded = math.ceil(missing / step) * step
    return f"about {rounded:,} more unit{'' if rounded == 1 else 's'}"


def read_sequential(
    difference: Difference,
    *,
    n: int,
    alpha: float,
    planned_units: int | None,
    wait_reason: str | None,
    tuned_alpha: float | None = None,
) -> Reading:
    """Return the reading of a confidence sequence, tuned to half the planned units.

    It is the asymptotic sequence of Waudby-Smith et al. (2021).
    With n units in both arms, N* = planned/2, ρ² = (−2·ln α + ln(−2·ln α + 1))/N*, k = nρ² + 1 the
    half-width is se·√n·sqrt(2k/(n²ρ²)·ln(√k/α)). The p-value is the smallest α whose interval (at
    the same ρ) excludes 0: √k·exp(−z²·nρ²/(2k)). `tuned_alpha` is the α of ρ², `alpha` by default.
    For a skewed difference z is its score, the root of its tail's exponent: see `tails`.
    """
    if difference.state is not State.OK:
        return Reading(METHOD, difference.state, difference.reason, alpha)
    if wait_reason is not None:
        return Reading(METHOD, State.NOT_ENOUGH_DATA, wait_reason, alpha)
    critical, growth, root = boundary(n, alpha, planned_units, tuned_alpha)
    z = difference.score
    log_p = math.log(root) - z * z * growth / 2.0
    p_value = math.exp(min(0.0, log_p))
    return read_at(difference, method=METHOD, alpha=alpha, critical=critical, p_value=p_value)


def boundary(
    n: int, alpha: float, planned_units: int | None, tuned_alpha: float | None = None
) -> tuple[float, float, float]:
    """Return the critical value in standard errors at n units, with nρ²/k and √k."""
    tuned = (planned_units or PLANNED_UNITS_DEFAULT) / 2.0
    log_alpha = math.log(tuned_alpha or alpha)
    rho2 = (-2.0 * log_alpha + math.log(-2.0 * log_alpha + 1.0)) / tuned
    k = n * rho2 + 1.0
    growth, root = n * rho2 / k, math.sqrt(k)
    return math.sqrt(2.0 / growth * math.log(root / alpha)), growth, root
