"""Divides the stake of a test over entry times, and finds the segment that its evidence is from.

A stake that enters at an interval is a bet with λ = 0 before it, hence any mixture of stakes whose
weights are fixed beforehand and sum to 1 is a test supermartingale as well. If a version was
healthy for long and then breaks, a stake that entered near the break detects it; the segment from
that entry to now is the one whose estimate and numbers count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# The number of slices of an interval, of 2 s each by default and never shorter: windows last about
# a second, so that the events of one second are in two slices at most.
SLICES = 5
SLICE_S_MIN = 2.0

# Three quarters of the stake enter at the start. The rest is divided over the steps, 1/((j+1)(j+2))
# of it for the j-th: half of that enters with the step, the other half every ENTRY_EVERY intervals
# after it, the i-th time with a weight of 1/(i + ENTRY_SPREAD)². So about half of it is divided
# evenly over the half an hour that a step usually lasts, and some is left in a step of any length.
FIRST_STAKE = 0.75
STEP_STAKE = 0.5
ENTRY_EVERY = 6
ENTRY_SPREAD = 30


@dataclass(frozen=True)
class Stakes:
    """`starts` are the intervals at which stakes enter, ascending; `weights` their shares of 1."""

    starts: Integers
    weights: Array

    def until(self, intervals: int) -> Stakes:
        """Return the stakes that entered before `intervals` intervals were over."""
        entered = int(np.searchsorted(self.starts, intervals))
        return Stakes(self.starts[:entered], self.weights[:entered])


@dataclass(frozen=True)
class Carried:
    """A process at one look, arrays of the shape `(…)` of the runs.

    `log_e` is ln of the whole wealth; the stake with most of it entered at interval `start`, in bet
    `bet`, and `gain` is its log gain since then, divided by its overdispersion.
    """

    log_e: Array
    start: Integers
    bet: Integers
    gain: Array


def stakes_of(steps: Sequence[int] | Integers) -> Stakes:
    """Return the stakes of intervals whose steps are `steps`, in the order of time.

    The entries are a function of the numbers of steps and intervals, never of their data. An
    instance that still serves the previous step starts no new one.
    """
    if not len(steps):
        return Stakes(np.zeros(0, dtype=np.int64), np.zeros(0))
    step = np.maximum.accumulate(np.asarray(steps, dtype=np.int64))
    firsts = np.flatnonzero(np.diff(step, prepend=step[0] - 1))
    number = np.searchsorted(firsts, np.arange(step.size), side="right") - 1
    age = np.arange(step.size) - firsts[number]
    share = (1.0 - FIRST_STAKE) / ((number + 1.0) * (number + 2.0))
    entry = age // ENTRY_EVERY
    late = (ENTRY_SPREAD - 1.0) / (entry + ENTRY_SPREAD) ** 2
    weights = share * np.where(age == 0, STEP_STAKE, (1.0 - STEP_STAKE) * late)
    weights[0] += FIRST_STAKE
    starts = np.flatnonzero(age % ENTRY_EVERY == 0)
    return Stakes(starts, weights[starts])


def carry(gains: Array, stakes: Stakes, dispersion: Array) -> Carried:
    """Return the wealth of the mixture over stakes and bets.

    `gains` of shape `(…, stakes, bets)` is each bet's log wealth since its stake entered, and
    `dispersion` of shape `(…, stakes)` the variance of the counts since then over that of
    independent ones. A count whose variance is φ times the binomial one has log wealth
    λS − φλ²v/2 at the bet λ/φ, which is the independent one's at λ divided by φ; that is also exact
    for errors in clumps of φ each.
    """
    since = gains / dispersion[..., None]
    weighted = since + (np.log(stakes.weights) - np.log(gains.shape[-1]))[:, None]
    flat = weighted.reshape(*weighted.shape[:-2], -1)
    waiting = max(0.0, 1.0 - float(stakes.weights.sum()))
    best = flat.argmax(axis=-1)
    most = np.take_along_axis(flat, best[..., None], axis=-1)
    entered = most[..., 0] + np.log(np.exp(flat - most).sum(axis=-1))
    log_e = np.logaddexp(entered, np.log(max(waiting, 1e-300)))
    stake, bet = np.divmod(best, gains.shape[-1])
    gain = np.take_along_axis(since.reshape(flat.shape), best[..., None], axis=-1)[..., 0]
    return Carried(log_e, stakes.starts[stake], bet, gain)
