"""Is the canary worse than stable? An exact betting test that may be read at any time.

Each bucket (one check interval inside one traffic step) multiplies a bettor's wealth by a factor
whose expectation is at most 1 while the null hypothesis holds, whatever the base rate does between
buckets and however the shares move. Wealth of 1/α therefore refutes the null at level α (Ville's
inequality). Counts are never pooled over buckets: that is what Simpson's paradox lives on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

BETS_MIRROR = (-0.25, 0.0, 0.25)
EXPECTED_RATE = 0.01

# A fifth of the stake enters late, 0.2·(1/√k − 1/√(k+1)) in the k-th bucket: a version that was
# healthy for long and then breaks is caught without first earning back what early bets lost.
LATE_STAKE = 0.2

# No bet risks everything: one unit may cost a bettor at most this share of the wealth.
RISK_MAX = 1.0 - 1e-9
BISECTIONS = 30
RATE_MAX = 0.999


@dataclass(frozen=True)
class BucketCounts:
    """Exposures and events (errors, or requests slower than a frozen bound) of one bucket.

    Units: whole units or requests. Raises ValueError unless 0 ≤ events ≤ n on both sides.
    """

    canary_n: int
    canary_events: int
    control_n: int
    control_events: int

    def __post_init__(self) -> None:
        for side in ("canary", "control"):
            n, events = getattr(self, f"{side}_n"), getattr(self, f"{side}_events")
            if not all(isinstance(value, int) for value in (n, events)):
                raise ValueError(f"{side}: exposures and events must be integers")
            if not 0 <= events <= n:
                raise ValueError(f"{side}: {events} events of {n} exposures")


@dataclass(frozen=True)
class Bets:
    """What is bet on, fixed before any data: it decides how soon harm shows, never whether α holds.

    `zero` and `margin` are the m of the alternatives p1 = p0 + m·δ: small ones find slight
    regressions, large ones find gross ones within tens of requests. p0 is estimated from the past
    and `prior_units` imagined units at the expected rate. `on_quiet` also bets on units without an
    event against δ = 0 (see `_exact_zero_logs`), which pays where events are frequent.
    """

    zero: tuple[float, ...]
    margin: tuple[float, ...]
    prior_units: float
    on_quiet: bool


# Errors are rare and their usual rate is hardly known beforehand.
RARE = Bets((1.0, 2.0, 3.0, 6.0, 12.0), (1.5, 2.0, 3.0, 6.0, 12.0), 50.0, on_quiet=False)
# Exceedances of a frozen quantile: their rate is known from thousands of requests, and margins are
# so wide that twelve of them beyond p50 or p95 would be no rate any more.
FREQUENT = Bets((1.0, 2.0, 3.0, 6.0), (1.5, 2.0, 3.0, 6.0), 200.0, on_quiet=True)


@dataclass(frozen=True)
class Counts:
    """The same counts as arrays of one shape `(…, buckets)`; leading axes are independent runs."""

    canary_n: Array
    canary_events: Array
    control_n: Array
    control_events: Array


@dataclass(frozen=True)
class Paths:
    """The evidence after each bucket, arrays of shape `(…, buckets)`, natural logarithms.

    `margin` tests "at most δ worse", `zero` "not worse", `mirror` "at least δ worse".
    `canary_rate` and `control_rate` are Mantel–Haenszel weighted, 0 while nothing can be compared.
    """

    margin: Array
    zero: Array
    mirror: Array
    canary_rate: Array
    control_rate: Array

    def exceeds(self, margin: float) -> Flags:
        """After which buckets the estimated difference was beyond the margin."""
        result: Flags = self.canary_rate - self.control_rate > margin
        return result


@dataclass(frozen=True)
class Evidence:
    """What the buckets so far say; logarithms are natural.

    `log_margin` and `log_zero` are the largest values ever reached: evidence for a rollback, once
    reached, stays (P(sup E ≥ 1/α) ≤ α). `log_zero_beyond` is `log_zero` as of the last moment when
    the estimated difference exceeded the margin. `log_mirror` is the present value, not the
    largest: a canary that was proven safe and then decays loses its proof. Rates are fractions,
    None without data on both sides; they differ by the Mantel–Haenszel risk difference.
    """

    log_margin: float
    log_zero: float
    log_zero_beyond: float
    log_mirror: float
    canary_rate: float | None
    control_rate: float | None
    canary_n: int
    control_n: int
    canary_events: int
    control_events: int

    @property
    def difference(self) -> float | None:
        if self.canary_rate is None or self.control_rate is None:
            return None
        return self.canary_rate - self.control_rate


def evidence(
    buckets: Sequence[BucketCounts], *, margin: float, expected_rate: float = EXPECTED_RATE
) -> Evidence:
    """The evidence of a whole rollout's buckets, oldest first.

    `margin` is the tolerated difference of rates, a fraction (0.01 is one percentage point);
    `expected_rate` the control rate assumed before the first bucket. Both must lie in (0, 1), else
    ValueError.
    """
    paths = follow(counts_of(buckets), margin=margin, expected_rate=expected_rate)
    return summarise(buckets, paths, beyond=paths.exceeds(margin))


def counts_of(buckets: Sequence[BucketCounts]) -> Counts:
    rows = [(b.canary_n, b.canary_events, b.control_n, b.control_events) for b in buckets]
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Counts(*table.T)


def summarise(buckets: Sequence[BucketCounts], paths: Paths, *, beyond: Flags) -> Evidence:
    """Reduce one run's paths to what decides; `beyond` as `Paths.exceeds` gives it."""
    zero_so_far = np.maximum.accumulate(paths.zero)
    compared = any(b.canary_n and b.control_n for b in buckets)
    return Evidence(
        log_margin=float(np.max(paths.margin, initial=0.0)),
        log_zero=float(np.max(paths.zero, initial=0.0)),
        log_zero_beyond=float(np.max(zero_so_far[beyond], initial=0.0)),
        log_mirror=float(paths.mirror[-1]) if paths.mirror.size else 0.0,
        canary_rate=float(paths.canary_rate[-1]) if compared else None,
        control_rate=float(paths.control_rate[-1]) if compared else None,
        canary_n=sum(b.canary_n for b in buckets),
        control_n=sum(b.control_n for b in buckets),
        canary_events=sum(b.canary_events for b in buckets),
        control_events=sum(b.control_events for b in buckets),
    )


def follow(
    counts: Counts, *, margin: float, expected_rate: float = EXPECTED_RATE, bets: Bets = RARE
) -> Paths:
    """All three processes and the estimates after each bucket; an empty side makes the factor 1.

    For the margin process E[K] = (1 − λδ + λp1/w)^n1 · (1 − λδ − λp0/(1−w))^n0
    ≤ (1 + λ(p1 − p0 − δ))^N ≤ 1 whenever p1 − p0 ≤ δ, by the weighted AM–GM inequality.
    The mirror process is the same with the roles swapped and δ negated: its null p1 − p0 ≥ δ is the
    swapped null p0 − p1 ≤ −δ. A control event pays 1/(1−w) + δ, a canary event −1/w + δ, none δ, so
    E[K] = (1 + λδ + λp0/(1−w))^n0 · (1 + λδ − λp1/w)^n1 ≤ (1 + λ(p0 − p1 + δ))^N ≤ 1,
    with the weights 1−w and w, for every 0 ≤ λ < 1/(1/w − δ).
    Raises ValueError unless margin and expected rate lie in (0, 1).
    """
    if not 0.0 < margin < 1.0 or not 0.0 < expected_rate < 1.0:
        raise ValueError("margin and expected rate must lie between 0 and 1")
    usable = (counts.canary_n > 0) & (counts.control_n > 0)
    total = counts.canary_n + counts.control_n
    share = np.where(usable, counts.canary_n / np.maximum(total, 1.0), 0.5)
    control_rate = _past_control_rate(counts, expected_rate, bets.prior_units)
    swapped = Counts(counts.control_n, counts.control_events, counts.canary_n, counts.canary_events)
    worse = np.minimum(control_rate[..., None] + np.array(bets.zero) * margin, RATE_MAX)
    worse = np.maximum(worse, control_rate[..., None])
    against_zero = _exact_zero_logs if bets.on_quiet else _zero_logs
    logs = (
        _wealth(_margin_logs(counts, share, control_rate, margin, bets.margin), usable),
        _wealth(against_zero(counts, share, control_rate, worse), usable),
        _wealth(_mirror_logs(swapped, 1.0 - share, control_rate, margin), usable),
    )
    return Paths(*logs, *_weighted_rates(counts, usable, total))


def _past_control_rate(counts: Counts, expected_rate: float, prior_units: float) -> Array:
    """(B + u·r)/(N0 + u), u imagined units, from the control counts strictly before each bucket."""
    events = np.cumsum(counts.control_events, axis=-1) - counts.control_events
    n = np.cumsum(counts.control_n, axis=-1) - counts.control_n
    rate: Array = (events + prior_units * expected_rate) / (n + prior_units)
    return rate


def _margin_logs(
    counts: Counts, share: Array, control_rate: Array, margin: float, multiples: tuple[float, ...]
) -> Array:
    w, p0 = share[..., None], control_rate[..., None]
    p1 = np.minimum(p0 + np.array(multiples) * margin, RATE_MAX)
    return _log_factor(counts, w, _best_bet(w, p1, p0, margin), margin)


def _zero_logs(counts: Counts, share: Array, control_rate: Array, p1: Array) -> Array:
    """For δ = 0 the growth-optimal bet is λ = w(1−w)(θ−1)/(wθ + 1 − w) with θ = p1/p0."""
    w = share[..., None]
    ratio = p1 / control_rate[..., None]
    bet = w * (1.0 - w) * (ratio - 1.0) / (w * ratio + 1.0 - w)
    return _log_factor(counts, w, bet, 0.0)


def _exact_zero_logs(counts: Counts, share: Array, control_rate: Array, p1: Array) -> Array:
    """The likelihood ratio of (p1, p0) to p* = w·p1 + (1−w)·p0 in both versions, shape as below.

    Turner, Ly and Grünwald, Generic E-variables for exact sequential k-sample tests (2024): at
    equal rates p a canary unit multiplies by f1 and a control unit by f0 on average, where
    w·f1 + (1−w)·f0 = 1, hence E = f1^n1 · f0^n0 ≤ 1 by the weighted AM–GM inequality. As p1 ≥ p0,
    f1 rises with the canary's rate and f0 falls with control's: a better canary only lowers E.
    On events it is the factor of `_zero_logs`; where these are half of all units, the quiet ones
    hold half of what there is to learn.
    """
    w, p0 = share[..., None], control_rate[..., None]
    both = w * p1 + (1.0 - w) * p0
    a, b = counts.canary_events[..., None], counts.control_events[..., None]
    quiet = np.log1p(-both)
    result: Array = (
        a * np.log(p1 / both)
        + (counts.canary_n[..., None] - a) * (np.log1p(-p1) - quiet)
        + b * np.log(p0 / both)
        + (counts.control_n[..., None] - b) * (np.log1p(-p0) - quiet)
    )
    return result


def _mirror_logs(swapped: Counts, share: Array, control_rate: Array, margin: float) -> Array:
    """`swapped` has control in the canary's place; the bets are on p1 = p0 + m·δ with m < 1."""
    w, p0 = share[..., None], control_rate[..., None]
    p1 = np.clip(p0 + np.array(BETS_MIRROR) * margin, 0.5 * p0, RATE_MAX)
    return _log_factor(swapped, w, _best_bet(w, p0, p1, -margin), -margin)


def _log_factor(counts: Counts, w: Array, bet: Array, margin: float) -> Array:
    """log K_k(λ; δ), shape `(…, buckets, bets)`:

    a·ln(1 + λ(1/w − δ)) + b·ln(1 − λ(1/(1−w) + δ)) + (N − a − b)·ln(1 − λδ)
    """
    a, b = counts.canary_events[..., None], counts.control_events[..., None]
    quiet = counts.canary_n[..., None] + counts.control_n[..., None] - a - b
    result: Array = (
        a * np.log1p(bet * (1.0 / w - margin))
        + b * np.log1p(-bet * (1.0 / (1.0 - w) + margin))
        + quiet * np.log1p(-bet * margin)
    )
    return result


def _best_bet(w: Array, p1: Array, p0: Array, margin: float) -> Array:
    """The λ with the largest expected log growth (Kelly) if the rates are p1 and p0; else 0.

    The growth per unit, w·p1·ln(1 + λu) + (1−w)·p0·ln(1 − λv) + q·ln(1 − λδ), is concave in λ, so
    its slope is bisected.
    """
    gain, loss = 1.0 / w - margin, 1.0 / (1.0 - w) + margin
    hit, miss = w * p1, (1.0 - w) * p0
    quiet = 1.0 - hit - miss
    low = np.zeros(np.broadcast_shapes(w.shape, p1.shape, p0.shape))
    high = np.broadcast_to(RISK_MAX / np.maximum(loss, margin), low.shape).copy()
    for _ in range(BISECTIONS):
        bet = 0.5 * (low + high)
        slope = (
            hit * gain / (1.0 + bet * gain)
            - miss * loss / (1.0 - bet * loss)
            - quiet * margin / (1.0 - bet * margin)
        )
        rising = slope > 0.0
        low = np.where(rising, bet, low)
        high = np.where(rising, high, bet)
    return low


def _wealth(log_factors: Array, usable: Flags) -> Array:
    """log E after each bucket: the mean over bets of the stakes' products, early and late ones.

    A bet that enters in bucket s is a bet with λ = 0 before s, hence a mixture over s (weights that
    sum to 1) is a test supermartingale as well. Stakes not yet entered count as they are.
    """
    steps = np.where(usable[..., None], log_factors, 0.0)
    waiting = LATE_STAKE / np.sqrt(np.arange(1.0, steps.shape[-2] + 2.0))
    entering = np.log(waiting[:-1] - waiting[1:])
    # What entered until bucket k and was multiplied since, for all k at once: each stake is divided
    # by what its bet had made before, they are added up, and multiplied by what it made until k.
    made = np.cumsum(steps, axis=-2)
    stakes = entering[:, None] - (made - steps)
    stakes[..., :1, :] = np.logaddexp(stakes[..., :1, :], np.log1p(-LATE_STAKE))
    entered = np.logaddexp.accumulate(stakes, axis=-2) + made
    mean = np.logaddexp.reduce(entered, axis=-1) - np.log(steps.shape[-1])
    path: Array = np.logaddexp(mean, np.log(waiting[1:]))
    return path


def _weighted_rates(counts: Counts, usable: Flags, total: Array) -> tuple[Array, Array]:
    """Rates weighted by n1·n0/N per bucket (Mantel and Haenszel 1959; Greenland and Robins 1985).

    So neither a change of the shares nor one of the base rate passes for a difference.
    """
    inverse = np.where(usable, 1.0 / np.maximum(total, 1.0), 0.0)
    weight = np.cumsum(counts.canary_n * counts.control_n * inverse, axis=-1)
    canary = np.cumsum(counts.canary_events * counts.control_n * inverse, axis=-1)
    control = np.cumsum(counts.control_events * counts.canary_n * inverse, axis=-1)
    safe = np.where(weight > 0.0, weight, 1.0)
    return canary / safe, control / safe
