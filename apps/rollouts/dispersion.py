"""Estimates how much more counts vary than independent draws, with stable as an A/A test.

Requests are correlated for two reasons: they come from the same user or caller, and they come in
the same bad minute. The first shows between clusters of units, the second between intervals. Both
are measured on the control alone, so that a bad canary cannot weaken the evidence against itself,
and assume that the canary's users and minutes vary as the control's do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# The number of standard errors subtracted from the cluster estimate: 32 clusters of independent
# units show that much by chance.
CLUSTER_ALLOWANCE = 1.0
# The number of standard errors from which a dispersion over time counts.
ALLOWANCE = 1.5
# Numbers of intervals: covariances are averaged over LAGS, bad times are assumed to last LASTING,
# and LEARNING show whether any lasts.
LAGS = 3
LASTING = 30
LEARNING = 60
INTERVALS_MIN = 3


# The history is divided into BLOCKS parts, and the BLOCKS_CUT most and least variable ones are left
# out, unless a part has fewer than BLOCK_LEAST intervals.
BLOCKS, BLOCKS_CUT = 6, 2
BLOCK_LEAST = 10
FIELDS = ("events", "at_once", "after", "binomial", "scale")


@dataclass(frozen=True)
class Clusters:
    """Sums of the control's exposures and events by cluster, `(…, intervals + 1, clusters)`.

    The k-th entry is of the first k intervals.
    """

    n: Array
    events: Array


def sums(values: Array, axis: int = -1) -> Array:
    """Return the sums of the first 0, 1, 2, … entries along `axis`."""
    shape = list(values.shape)
    shape[axis] = 1
    return np.concatenate([np.zeros(shape), np.cumsum(values, axis=axis)], axis=axis)


def of_clusters(clusters: Clusters, starts: Integers, now: int) -> Array:
    """Return the variance between clusters over the binomial one, from each start to now, ≥ 1.

    Shape `(…, starts)`, the earliest start first. Pearson's statistic over its degrees of freedom,
    each cluster weighted by its exposures (McCullagh and Nelder 1989, 4.5), less an allowance for
    its own standard error, √((2 + 1/μ)/(G − 1)) at μ events in a cluster.
    """
    n = clusters.n[..., now, None, :] - clusters.n[..., starts, :]
    events = clusters.events[..., now, None, :] - clusters.events[..., starts, :]
    total, happened = n.sum(axis=-1), events.sum(axis=-1)
    rate = happened / np.maximum(total, 1.0)
    left = events - rate[..., None] * n
    # The rate is estimated from the same clusters: each reduces the variance by n_g/N.
    share = n / np.maximum(total, 1.0)[..., None]
    expected = rate * (1.0 - rate) * (n * (1.0 - share)).sum(axis=-1)
    used = np.maximum((n > 0.0).sum(axis=-1), 2)
    noise = np.sqrt((2.0 + used / np.maximum(happened, 1.0)) / (used - 1.0))
    ratio = (left**2).sum(axis=-1) / np.where(expected > 0.0, expected, 1.0)
    adjusted = np.where(expected > 0.0, ratio - CLUSTER_ALLOWANCE * noise, 1.0)
    shown = np.maximum(adjusted, 1.0)
    # Returning units add dispersion in proportion to time: the longest span gives a more reliable
    # estimate than a short one with few of them.
    span = (now - starts) / max(1, now - int(starts[0]))
    result: Array = np.maximum(shown, 1.0 + (shown[..., :1] - 1.0) * span)
    return result


@dataclass(frozen=True)
class Pace:
    """An arm's exposures and events by interval, `(…, intervals)`."""

    n: Array
    events: Array


@dataclass(frozen=True)
class History:
    """The variation of an arm's counts between intervals, as sums that can be added up.

    `at_once` are squared residuals, `after` products of those up to LAGS intervals apart,
    `binomial` the squared residuals expected of independent draws, `scale` squared expectations.
    """

    intervals: float
    events: Array
    at_once: Array
    after: Array
    binomial: Array
    scale: Array

    @classmethod
    def of(cls, pace: Pace) -> History:
        total = np.maximum(pace.n.sum(axis=-1), 1.0)
        events = pace.events.sum(axis=-1)
        rate = events / total
        left = _residuals(pace)
        at_once, after = _covariances(left, left)
        scale = rate**2 * (pace.n**2).sum(axis=-1)
        return cls(pace.n.shape[-1], events, at_once, after, rate * (1.0 - rate) * total, scale)

    @classmethod
    def usual(cls, pace: Pace) -> History:
        """Return the history of typical times in `pace`: BLOCKS parts without the extreme ones.

        A single incident in hours is not the usual variation of a version: if it counted, it would
        divide all evidence by hundreds. Parts are ordered by their dispersion, and the same number
        of the least and the most variable ones is left out (a trimmed mean), so that rates which
        always vary keep their dispersion.
        """
        length = pace.n.shape[-1] // BLOCKS
        if length < BLOCK_LEAST:
            return cls.of(pace)
        shape = (*pace.n.shape[:-1], BLOCKS, length)
        n, events = (each[..., : BLOCKS * length].reshape(shape) for each in (pace.n, pace.events))
        parts = cls.of(Pace(n, events))
        scale = np.where(parts.scale > 0.0, parts.scale, 1.0)
        order = np.argsort((parts.at_once - parts.binomial) / scale, axis=-1, kind="stable")
        kept = order[..., BLOCKS_CUT:-BLOCKS_CUT]

        def total(values: Array) -> Array:
            result: Array = np.take_along_axis(values, kept, axis=-1).sum(axis=-1)
            return result

        return cls(
            length * kept.shape[-1],
            *(total(getattr(parts, name)) for name in FIELDS),
        )

    def merge(self, other: History) -> History:
        return History(
            self.intervals + other.intervals,
            self.events + other.events,
            self.at_once + other.at_once,
            self.after + other.after,
            self.binomial + other.binomial,
            self.scale + other.scale,
        )


def over_time(canary: Pace, control: Pace, before: History | None = None) -> Array:
    """Return the control's dispersion over time that the canary does not share: shape `(…)`.

    It is the long-run variance of the control's rate between intervals beyond the binomial one,
    over the squared rate: relative, so that it applies to another share of the traffic as well.
    `before` is the control's history before the rollout. 0 while chance explains the variation.

    A bad time that lasts shows as covariance of consecutive intervals. γ0 + 2·γ1·D is the long-run
    variance if covariance decays by 1 − 1/D per interval; D is LASTING, a cautious value, since
    measuring how long bad times last takes days. Where too few intervals show whether bad times
    last, they are assumed to, as far as the intervals differ at all.
    Changes of both arms at the same time (a daily cycle, an incident of a shared backend) do not
    affect the difference and are subtracted.
    """
    own = History.of(control) if before is None else History.of(control).merge(before)
    if own.intervals < INTERVALS_MIN:
        return np.zeros(control.n.shape[:-1])
    chance = own.binomial / np.sqrt(np.maximum(own.intervals - LAGS, 1))
    at_once = own.at_once - own.binomial
    few = np.sqrt(2.0 + own.intervals / np.maximum(own.events, 1.0))
    sure = np.where(own.after > ALLOWANCE / np.sqrt(LAGS) * chance, own.after, 0.0)
    unknown = max(0.0, 1.0 - own.intervals / LEARNING)
    lasts = sure + unknown * np.maximum(at_once - sure, 0.0)
    is_significant = at_once > ALLOWANCE * few * chance
    lasting = min(own.intervals, LASTING)
    scale = np.where(own.scale > 0.0, own.scale, 1.0)
    variance = np.where(is_significant, at_once + 2.0 * lasting * lasts, 0.0) / scale
    result: Array = np.maximum(variance - lasting * _shared(canary, control), 0.0)
    return result


def _shared(canary: Pace, control: Pace) -> Array:
    """Return the significant relative covariance of both arms' rates over the same intervals."""
    ours, theirs = _residuals(canary), _residuals(control)
    both = _covariances(ours, theirs)
    variance = (ours**2).sum(axis=-1) * (theirs**2).sum(axis=-1)
    chance = np.sqrt(variance / max(control.n.shape[-1], 1))
    sure = np.maximum(both[0] - 2.0 * chance, 0.0) + 2.0 * np.maximum(both[1] - 2.0 * chance, 0.0)
    scale = (_rate(canary) * _rate(control)) * (canary.n * control.n).sum(axis=-1)
    result: Array = sure / np.where(scale > 0.0, scale, 1.0)
    return result


def _rate(pace: Pace) -> Array:
    rate: Array = pace.events.sum(axis=-1) / np.maximum(pace.n.sum(axis=-1), 1.0)
    return rate


def _residuals(pace: Pace) -> Array:
    """Return the events less those expected at the arm's mean rate."""
    left: Array = pace.events - _rate(pace)[..., None] * pace.n
    return left


def _covariances(first: Array, second: Array) -> tuple[Array, Array]:
    """Return sums of residuals' products: in one interval, and averaged over LAGS intervals."""
    at_once: Array = (first * second).sum(axis=-1)
    after = np.zeros_like(at_once)
    for lag in range(1, min(LAGS, first.shape[-1] - 1) + 1):
        pairs = first[..., lag:] * second[..., :-lag] + first[..., :-lag] * second[..., lag:]
        after = after + pairs.sum(axis=-1) / (2.0 * LAGS)
    return at_once, after
