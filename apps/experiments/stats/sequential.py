"""Reading an experiment while it runs: an interval that holds however often one looks.

It stays silent until the normal approximation, which it leans on, can be trusted at that size.
"""

from __future__ import annotations

import math

from apps.experiments.stats.comparison import Difference, Reading, State, read_at

METHOD = "sequential"
UNITS_MIN = 100
EVENTS_MIN = 10
EXPECTED_MIN = 3.0
# Used to tune the interval where no size was planned.
PLANNED_UNITS_DEFAULT = 10_000


def silence(control_n: int, n: int, events: tuple[int, int] | None = None) -> str | None:
    """Why there is no sequential reading yet, or None. `events` are control's and treatment's."""
    smaller = min(control_n, n)
    if smaller < UNITS_MIN:
        return f"each arm needs at least {UNITS_MIN} units (the smaller has {smaller})"
    return None if events is None else few_events(control_n, n, events)


def few_events(control_n: int, n: int, events: tuple[int, int]) -> str | None:
    """Why a rate has too few events, or non-events, for the normal approximation, or None."""
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
    """Return how many units are missing, with two digits, rounded up."""
    step = 10 ** max(0, math.floor(math.log10(max(missing, 1.0))) - 1)
    rounded = math.ceil(missing / step) * step
    return f"about {rounded:,} more unit{'' if rounded == 1 else 's'}"


def read_sequential(
    found: Difference,
    *,
    n: int,
    alpha: float,
    planned_units: int | None,
    silent: str | None,
    tuned_alpha: float | None = None,
) -> Reading:
    """The asymptotic confidence sequence of Waudby-Smith et al. (2021), tuned to half the plan.

    With n units in both arms, N* = planned/2, ρ² = (−2·ln α + ln(−2·ln α + 1))/N*, k = nρ² + 1 the
    half-width is se·√n·sqrt(2k/(n²ρ²)·ln(√k/α)). The p-value is the smallest α whose interval (at
    the same ρ) excludes 0: √k·exp(−z²·nρ²/(2k)). `tuned_alpha` is the α of ρ², `alpha` by default.
    Of a skewed difference z is its score, the root of its tail's exponent: see `tails`.
    """
    if found.state is not State.OK:
        return Reading(METHOD, found.state, found.reason, alpha)
    if silent is not None:
        return Reading(METHOD, State.NOT_ENOUGH_DATA, silent, alpha)
    critical, growth, root = boundary(n, alpha, planned_units, tuned_alpha)
    z = found.score
    log_p = math.log(root) - z * z * growth / 2.0
    p_value = math.exp(min(0.0, log_p))
    return read_at(found, method=METHOD, alpha=alpha, critical=critical, p_value=p_value)


def boundary(
    n: int, alpha: float, planned_units: int | None, tuned_alpha: float | None = None
) -> tuple[float, float, float]:
    """The critical value in standard errors at n units, with nρ²/k and √k."""
    tuned = (planned_units or PLANNED_UNITS_DEFAULT) / 2.0
    log_alpha = math.log(tuned_alpha or alpha)
    rho2 = (-2.0 * log_alpha + math.log(-2.0 * log_alpha + 1.0)) / tuned
    k = n * rho2 + 1.0
    growth, root = n * rho2 / k, math.sqrt(k)
    return math.sqrt(2.0 / growth * math.log(root / alpha)), growth, root
