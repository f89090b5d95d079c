"""What rare and skewed values do to a comparison, above all where one arm is small.

An arm that happens to lack the rare large values has a small mean *and* a small variance, so that
Welch's test finds it worse: in an A/A with 0.5 % buyers at 95:5 in 40 % of runs. What mends that
leaves equal arms as they were:

* Of the smaller arm's own variance only so much is believed as its units carry: the share
  s = n/(n + 3·skewness²). The rest is the variance of all units, where that is larger: an arm
  without an event has an unknown variance, not 0.
* The difference is read by the skewness that is left when it is divided by that standard error:
  with λ = κ₃·(1/n_B² − 1/n_A²)/se³, κ₃ of all units, (1 − 3s)·λ. λ is the difference's own, and 3s
  times as much goes off because the error is estimated from the same values, with which it is
  correlated (Hall 1992, The Bootstrap and Edgeworth Expansion, section 2.6). λ is 0 for equal arms.
  See `tails` for how it is read.

Where λ is beyond SKEWNESS_MAX, or the smaller arm expects hardly any value other than 0, nothing is
read, and the reason says how many units are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import Difference, State
from apps.experiments.stats.sequential import EVENTS_MIN, EXPECTED_MIN, more_units

# Of λ. A mean of n values has skewness/√n of theirs, so that an arm which is small beside the other
# one needs skewness² units; normal theory without a correction needs 355 times as many (Kohavi et
# al. 2014).
SKEWNESS_MAX = 1.0
# So many units, times skewness², weigh as much as the smaller arm's own: as many as are expected to
# have three values of a kind that is as rare as the skewness says.
SHRUNK_BY = 3.0
# A unit with this share of its arm's sum is worth a word; where units are few each has much.
SHARE_MIN = 0.5
SHARE_UNITS_MIN = 20


@dataclass(frozen=True)
class Spread:
    """Of the means of a line Σ wᵢ·valueᵢ in two arms, control's first.

    `own` are the variances of the means by each arm's values, `pooled` by those of both together.
    `third` is the third cumulant of the difference where both arms have the distribution of all
    units, None where third moments are not known; `skewness` that of units' values.
    """

    own: tuple[float, float]
    pooled: tuple[float, float]
    third: float | None
    skewness: float


def spread_of(
    arms: Sequence[Comoments], lines: Sequence[Sequence[float]], common: Sequence[float]
) -> Spread:
    """Of control and treatment, each with a line of its own; each needs two units.

    `common` is the line of all units, by which both arms' values are put together.
    """
    (a, b), n = arms, sum(arm.n for arm in arms)
    squares = [arm.linear_square(line) for arm, line in zip(arms, lines, strict=True)]
    cubes = [arm.linear_cube(common) for arm in arms]
    variance = sum(arm.linear_square(common) for arm in arms) / (n - 2)
    third, skewness = None, 0.0
    if cubes[0] is not None and cubes[1] is not None:
        cumulant = (cubes[0] + cubes[1]) / n
        third = cumulant * (1.0 / b.n / b.n - 1.0 / a.n / a.n)
        skewness = cumulant / variance / math.sqrt(variance) if variance > 0.0 else 0.0
    return Spread(
        own=(squares[0] / (a.n - 1) / a.n, squares[1] / (b.n - 1) / b.n),
        pooled=(variance / a.n, variance / b.n),
        third=third,
        skewness=skewness,
    )


def combined(parts: Iterable[tuple[float, Spread]]) -> Spread:
    """Of Σ w·d over independent differences d, strata with their weights; `skewness` is largest."""
    own, pooled, third, skewness = [0.0, 0.0], [0.0, 0.0], 0.0, 0.0
    is_known = True
    for weight, spread in parts:
        for arm in (0, 1):
            own[arm] += weight * weight * spread.own[arm]
            pooled[arm] += weight * weight * spread.pooled[arm]
        is_known = is_known and spread.third is not None
        third += weight**3 * (spread.third or 0.0)
        skewness = max(skewness, spread.skewness, key=abs)
    return Spread((own[0], own[1]), (pooled[0], pooled[1]), third if is_known else None, skewness)


def with_skewness(found: Difference, spread: Spread, n: tuple[int, int]) -> Difference:
    """Return `found`, Welch's, with the standard error and the skewness of the module's header.

    Without known third moments it stays Welch's.
    """
    if found.state is not State.OK or spread.third is None:
        return found
    believed = min(n) / (min(n) + SHRUNK_BY * spread.skewness**2)
    own = found.control_variance, found.treatment_variance
    if sum(spread.pooled) > sum(own):
        noise = [a + (1.0 - believed) * (b - a) for a, b in zip(own, spread.pooled, strict=True)]
        found = replace(found, control_variance=noise[0], treatment_variance=noise[1])
    return replace(found, skewness=(1.0 - 3.0 * believed) * skewness_of(spread))


def skewness_of(spread: Spread) -> float:
    """Return λ, the skewness of the difference in standard errors; infinite where beyond floats."""
    error = math.sqrt(max(sum(spread.own), sum(spread.pooled)))
    if spread.third is None or error <= 0.0:
        return 0.0
    skewness = spread.third / error / error / error
    return skewness if math.isfinite(skewness) else math.inf


def read_or_not(
    found: Difference,
    spread: Spread,
    arms: Sequence[Comoments],
    names: tuple[str, str],
    *,
    is_capped: bool,
) -> Difference:
    """Return `found` with its skewness, or without noise and with the reason why nothing is read.

    `names` are those of the arms, control's first; `is_capped` says that the metric has a cap.
    """
    if found.state is not State.OK:
        return found
    why = why_unread(spread, arms, names, is_capped=is_capped)
    if why is None:
        return with_skewness(found, spread, (arms[0].n, arms[1].n))
    means = found.control_mean, found.treatment_mean
    return Difference(State.NOT_ENOUGH_DATA, why, found.test, *means)


def why_unread(
    spread: Spread,
    arms: Sequence[Comoments],
    names: tuple[str, str],
    *,
    is_capped: bool,
) -> str | None:
    """Return why these values are too rare or too skewed to be read, and what is missing; or None.

    How many units are missing is reckoned at the arms' present shares.
    """
    smaller = 0 if arms[0].n <= arms[1].n else 1
    n, name = arms[smaller].n, names[smaller]
    if (rare := _why_rare(arms, n, name)) is not None:
        return rare
    skewness = abs(skewness_of(spread))
    if skewness <= SKEWNESS_MAX:
        return None
    if not math.isfinite(skewness):
        return "the outcomes are beyond what can be computed"
    more = n * ((skewness / SKEWNESS_MAX) ** 2 - 1.0)
    return (
        f"the values are skewed (skewness {spread.skewness:.3g}) and {name} has only {n:,} units: "
        f"it needs {more_units(more)}{'' if is_capped else ', or the metric a cap'}"
    )


def _why_rare(arms: Sequence[Comoments], n: int, name: str) -> str | None:
    """As of a rate: enough values other than 0, and enough expected in the smaller arm."""
    if arms[0].extremes is None or arms[1].extremes is None:
        return None
    whole = arms[0].n + arms[1].n
    others = arms[0].extremes.nonzero + arms[1].extremes.nonzero
    if 2 * others >= whole:
        return None
    expected = n * others / whole
    if others < EVENTS_MIN:
        more = f": {more_units(n * (EVENTS_MIN / others - 1.0))} in {name}" if others else ""
        return f"at least {EVENTS_MIN} units with a value other than 0 are needed ({others}){more}"
    if expected < EXPECTED_MIN:
        missing = more_units(n * (EXPECTED_MIN / expected - 1.0))
        return (
            f"{name} expects only {expected:.1f} units with a value other than 0, "
            f"{EXPECTED_MIN:.0f} are needed: {missing} in {name}"
        )
    return None


def heaviest_share(arm: Comoments) -> float | None:
    """Return which share of its arm's sum one unit has, if that is much; else None."""
    ends = arm.extremes
    if ends is None or arm.n < SHARE_UNITS_MIN or ends.low < 0.0:
        return None
    total = arm.means[0] * arm.n
    share = ends.high / total if total > 0.0 else 0.0
    return min(1.0, share) if share >= SHARE_MIN and math.isfinite(share) else None
