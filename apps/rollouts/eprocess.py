"""Tests whether the canary is worse than stable, by exact betting that is valid at any time.

Each slice of time (a part of a check interval inside one traffic step) multiplies a bettor's wealth
by a factor whose expectation is at most 1 while the null hypothesis holds, whatever the base rate
does between slices and however the shares change. Wealth of 1/α therefore refutes the null at level
α (Ville's inequality). Counts must not be pooled over slices, which would cause Simpson's paradox.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

BETS_MIRROR = (-0.25, 0.0, 0.25)
EXPECTED_RATE = 0.01

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
    """The bets, fixed before any data. They decide how soon harm shows, never whether α holds.

    `zero` and `margin` are the m of the alternatives p1 = p0 + m·δ: small ones find slight
    regressions, large ones find gross ones within tens of requests. p0 is estimated from the past
    and `prior_units` pseudo-units at the expected rate. `on_quiet` also bets on units without an
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
    """Counts as arrays of one shape `(…, intervals, slices)`; leading axes are independent runs."""

    canary_n: Array
    canary_events: Array
    control_n: Array
    control_events: Array


@dataclass(frozen=True)
class Factors:
    """The factors of each bet's wealth, as natural logarithms of shape `(…, slices, bets)`.

    `margin` tests "at most δ worse", `zero` "not worse", `mirror` "at least δ worse". They are 0
    where a side is empty.
    """

    margin: Array
    zero: Array
    mirror: Array


def counts_of(buckets: Sequence[BucketCounts]) -> Counts:
    """Return counts of shape `(buckets, 1)`: each bucket is a slice of its own."""
    rows = [(b.canary_n, b.canary_events, b.control_n, b.control_events) for b in buckets]
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Counts(*table.T[..., None])


def factors(
    counts: Counts, *, margin: float, expected_rate: float = EXPECTED_RATE, bets: Bets = RARE
) -> Factors:
    """Return the factors of all three processes; `counts` have the shape `(…, intervals, slices)`.

    Bets are chosen for each interval, from the past and the interval's exposures, and settled in
    each of its slices by that slice's own shares. `margin` is the tolerated difference of rates, a
    fraction (0.01 is one percentage point); `expected_rate` the control rate assumed before any.

    For the margin process E[K] = (1 − λδ + λp1/w)^n1 · (1 − λδ − λp0/(1−w))^n0
    ≤ (1 + λ(p1 − p0 − δ))^N ≤ 1 whenever p1 − p0 ≤ δ, by the weighted AM–GM inequality.
    The mirror process is the same with the roles swapped and δ negated: its null p1 − p0 ≥ δ is the
    swapped null p0 − p1 ≤ −δ. A control event pays 1/(1−w) + δ, a canary event −1/w + δ, none δ, so
    E[K] = (1 + λδ + λp0/(1−w))^n0 · (1 + λδ − λp1/w)^n1 ≤ (1 + λ(p0 − p1 + δ))^N ≤ 1,
    with the weights 1−w and w, for every 0 ≤ λ < 1/(1/w − δ).
    Raises ValueError unless margin and expected rate lie in (0, 1).
    """
    _require_shares(margin, expected_rate)
    p0 = _past_control_rate(counts, expected_rate, bets.prior_units)
    return _factors_at(counts, p0, margin, bets)


def _require_shares(margin: float, expected_rate: float) -> None:
    if not 0.0 < margin < 1.0 or not 0.0 < expected_rate < 1.0:
        raise ValueError("margin and expected rate must lie between 0 and 1")


def _factors_at(counts: Counts, p0: Array, margin: float, bets: Bets) -> Factors:
    """Return the factors of intervals, given the earlier control rate `p0` of each."""
    usable = ((counts.canary_n > 0) & (counts.control_n > 0))[..., None]
    share = _share(counts.canary_n, counts.control_n)
    usual = _share(counts.canary_n.sum(axis=-1), counts.control_n.sum(axis=-1))
    swapped = Counts(counts.control_n, counts.control_events, counts.canary_n, counts.canary_events)
    worse = np.minimum(p0[..., None] + np.array(bets.zero) * margin, RATE_MAX)
    worse = np.maximum(worse, p0[..., None])
    against_zero = _exact_zero_logs if bets.on_quiet else _zero_logs
    logs = (
        _margin_logs(counts, (share, usual), p0, margin, bets.margin),
        against_zero(counts, share, p0, worse[..., None, :]),
        _mirror_logs(swapped, (1.0 - share, 1.0 - usual), p0, margin),
    )
    return Factors(*(_in_a_row(np.where(usable, each, 0.0)) for each in logs))


# The number of cached processes; each takes some hundred kilobytes at most.
KEPT_MAX = 80
_kept: OrderedDict[tuple[Any, ...], tuple[Counts, Factors]] = OrderedDict()


def settled_factors(
    counts: Counts, *, margin: float, expected_rate: float = EXPECTED_RATE, bets: Bets = RARE
) -> Factors:
    """Return the same as `factors` for one run, but compute only the new intervals.

    A bet is settled once: an interval's factors depend only on it and earlier ones. Factors of the
    intervals that an earlier call had are taken from the cache. Raises ValueError like `factors`.
    """
    _require_shares(margin, expected_rate)
    first = tuple(column[:1].tobytes() for column in columns_of(counts))
    key = (margin, expected_rate, bets, counts.canary_n.shape[-1], first)
    before = _kept.pop(key, None)
    known = _common_intervals(before[0], counts) if before else 0
    if before is not None and known == len(counts.canary_n) == len(before[0].canary_n):
        _kept[key] = before
        return before[1]
    p0 = _past_control_rate(counts, expected_rate, bets.prior_units)[known:]
    fresh = _factors_at(Counts(*(each[known:] for each in columns_of(counts))), p0, margin, bets)
    if before is not None:
        slices = known * counts.canary_n.shape[-1]
        pairs = zip(processes_of(before[1]), processes_of(fresh), strict=True)
        fresh = Factors(*(np.concatenate([old[:slices], new]) for old, new in pairs))
    _kept[key] = counts, fresh
    while len(_kept) > KEPT_MAX:
        _kept.popitem(last=False)
    return fresh


def columns_of(counts: Counts) -> tuple[Array, Array, Array, Array]:
    return counts.canary_n, counts.canary_events, counts.control_n, counts.control_events


def processes_of(processes: Factors) -> tuple[Array, Array, Array]:
    return processes.margin, processes.zero, processes.mirror


def _common_intervals(before: Counts, now: Counts) -> int:
    """Return the number of leading intervals that are the same in both."""
    known = min(len(before.canary_n), len(now.canary_n))
    pairs = zip(columns_of(before), columns_of(now), strict=True)
    differs = np.zeros(known, dtype=bool)
    for old, new in pairs:
        differs |= (old[:known] != new[:known]).any(axis=-1)
    return int(differs.argmax()) if differs.any() else known


def _share(canary_n: Array, control_n: Array) -> Array:
    """Return the canary's share of the exposures, one half where a side is empty."""
    usable = (canary_n > 0) & (control_n > 0)
    return np.where(usable, canary_n / np.maximum(canary_n + control_n, 1.0), 0.5)


def _in_a_row(logs: Array) -> Array:
    """`(…, intervals, slices, bets)` → `(…, slices of all intervals, bets)`."""
    return logs.reshape(*logs.shape[:-3], -1, logs.shape[-1])


def _past_control_rate(counts: Counts, expected_rate: float, prior_units: float) -> Array:
    """(B + u·r)/(N0 + u), u pseudo-units, from the intervals strictly before each one."""
    events_of, n_of = counts.control_events.sum(axis=-1), counts.control_n.sum(axis=-1)
    events, n = np.cumsum(events_of, axis=-1) - events_of, np.cumsum(n_of, axis=-1) - n_of
    rate: Array = (events + prior_units * expected_rate) / (n + prior_units)
    return rate


Shares = tuple[Array, Array]


def _margin_logs(
    counts: Counts, shares: Shares, p0: Array, margin: float, multiples: tuple[float, ...]
) -> Array:
    p1 = np.minimum(p0[..., None] + np.array(multiples) * margin, RATE_MAX)
    return _settle(counts, shares, p1, p0[..., None], margin)


def _mirror_logs(swapped: Counts, shares: Shares, p0: Array, margin: float) -> Array:
    """`swapped` has control in the canary's place; the bets are on p1 = p0 + m·δ with m < 1."""
    usual = p0[..., None]
    p1 = np.clip(usual + np.array(BETS_MIRROR) * margin, 0.5 * usual, RATE_MAX)
    return _settle(swapped, shares, usual, p1, -margin)


def _settle(counts: Counts, shares: Shares, p1: Array, p0: Array, margin: float) -> Array:
    """Return the factors of an interval's best bets in its slices; no bet risks everything."""
    w = shares[0][..., None]
    best = _best_bet(shares[1][..., None], p1, p0, margin)[..., None, :]
    most = RISK_MAX / np.maximum(1.0 / (1.0 - w) + margin, margin)
    return _log_factor(counts, w, np.minimum(best, most), margin)


def _zero_logs(counts: Counts, share: Array, p0: Array, p1: Array) -> Array:
    """For δ = 0 the growth-optimal bet is λ = w(1−w)(θ−1)/(wθ + 1 − w) with θ = p1/p0."""
    w = share[..., None]
    ratio = p1 / p0[..., None, None]
    bet = w * (1.0 - w) * (ratio - 1.0) / (w * ratio + 1.0 - w)
    return _log_factor(counts, w, bet, 0.0)


def _exact_zero_logs(counts: Counts, share: Array, control_rate: Array, p1: Array) -> Array:
    """The likelihood ratio of (p1, p0) to p* = w·p1 + (1−w)·p0 in both versions, shape as below.

    Turner, Ly and Grünwald, Generic E-variables for exact sequential k-sample tests (2024): at
    equal rates p a canary unit multiplies by f1 and a control unit by f0 on average, where
    w·f1 + (1−w)·f0 = 1, hence E = f1^n1 · f0^n0 ≤ 1 by the weighted AM–GM inequality. As p1 ≥ p0,
    f1 rises with the canary's rate and f0 falls with control's: a better canary only lowers E.
    On events it is the factor of `_zero_logs`; where events are half of all units, the units
    without one hold half of the information.
    """
    w, p0 = share[..., None], control_rate[..., None, None]
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
    """Return the λ with the largest expected log growth (Kelly) at the rates p1 and p0; else 0.

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
