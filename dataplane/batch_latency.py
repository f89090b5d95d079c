"""Estimates how long a version takes for a batch, and so when a queued request is answered.

The time of a batch is modelled as `fixed + row × rows`, fitted to recent batches by least squares
with exponential forgetting and a ridge towards a line through the origin. The version is assumed to
compute one batch after the other, so the time of a batch begins when the one before it was
answered. Sizes that were never tried are extrapolated: twice the rows take at most twice the time.
The cost of rows varies, so a deadline counts as met only with `PRUDENCE` standard deviations to
spare.

A batch that misses its deadline gives a lower bound of its time. Whether the version is at fault
depends on its silence: how long it has answered nothing while it had work to do.
"""

from __future__ import annotations

from math import sqrt

# The estimate is valid for this long after the last batch.
STALE_S = 5.0
# Standard deviations of margin for rows that cost more than others: 49 of 50 batches take no
# longer.
PRUDENCE = 2.0
# Spare time that a request needs to join a queue, as a share of the timeout; otherwise all requests
# in the queue would be close to their deadlines.
RESERVE = 0.05
# Time between the version's answer and the client's, as a share of the timeout, and its maximum.
_MARGIN, _MARGIN_MAX_S = 0.02, 0.004
# Shares of the timeout. If full batches take less than the first there is nothing to plan: several
# of them are done in time. Above the second a batch grows only if that makes its rows cheaper,
# above the third only while its fixed part is larger than the rest.
TRIFLE, SHORT, LONG = 1 / 16, 1 / 16, 1 / 4
# A batch grows until its fixed part is at most this share of it.
_FIXED_SHARE_MAX = 0.1
# The weight of earlier batches is multiplied by this for each new one.
_KEPT = 0.9
# The strength of the ridge towards the origin.
_RIDGE = 0.02
# A batch that takes this many times longer or shorter than expected indicates a new regime.
_LEAP = 3.0
# One of this many trifling batches is used for the estimate.
_SAMPLED = 8
# Answers this close together, as a share of the time of a batch, were computed together.
_TOGETHER = 0.1
# A batch that missed its deadline is assumed to need this many times the time that it had.
_LOST = 1.5
# A request with this share of the timeout left did not wait: no other request has more.
_WHOLE = 0.7
# One of this many batches is twice as large, if it should take at most the second value as a share
# of the timeout: only a trial shows whether larger batches are better.
_TRIED, _TRIED_MAX = 16, 0.7
# Weight of observations that a trial requires.
_TRIED_WEIGHT_MIN = 3.0
# Seconds for which the size of the largest batch is remembered.
_SIZE_KEPT_S = 60.0
# Silence is the version's fault above the first share of the timeout and the third value times the
# expected time (rows differ tenfold), but above the second in any case.
_PATIENCE, _PATIENCE_MAX, _PATIENCE_COSTS = 0.5, 4.0, 12.0


class Pace:
    """Times are seconds on any monotonic clock, passed in by the caller."""

    __slots__ = (
        "_before",
        "_ended_at",
        "_fixed_s",
        "_lanes",
        "_largest_rows",
        "_largest_rows_at",
        "_leaps",
        "_lost_at",
        "_margin_s",
        "_patience_s",
        "_row_s",
        "_rows_limit",
        "_rows_sent",
        "_sent_at",
        "_silent_since",
        "_skipped",
        "_spread",
        "_sums",
        "_timeout_s",
        "_tried",
        "_tries_every",
        "_under_way_rows",
        "batch_rows",
        "free_at",
        "is_trifling",
        "quick_s",
        "row_bound_s",
    )

    def __init__(self, rows_max: int, timeout_s: float, lanes: int = 1) -> None:
        # Maximum rows of a batch, from the model's settings.
        self._rows_limit = rows_max
        # The timeout of requests.
        self._timeout_s = timeout_s
        # Time reserved for the way back to the client.
        self._margin_s = min(_MARGIN * timeout_s, _MARGIN_MAX_S)
        # Batches that are computed in parallel: one on each instance of each endpoint.
        self._lanes = lanes
        # Weight, rows, time, rows², rows × time: decaying sums over batches.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        # The sums before the last batch, with its rows, its time and the spread at the time.
        self._before = (self._sums, 0, 0.0, 0.0)
        # The time of a batch: a fixed part, and a part per row; 0 while unknown.
        self._fixed_s = 0.0
        self._row_s = 0.0
        # The variance of a row's time.
        self._spread = 0.0
        # Consecutive batches that took a multiple of the expected time.
        self._leaps = 0
        # Trifling batches since the last one that was used for the estimate.
        self._skipped = 0
        # The largest recent batch, and when it was.
        self._largest_rows = 0
        self._largest_rows_at = 0.0
        # Batches since the last trial of twice the size, and the number until the next trial.
        self._tried = 0
        self._tries_every = 1
        # When the version last answered anything.
        self._ended_at = float("-inf")
        # When a batch last missed its deadline, and when one was last sent.
        self._lost_at = float("-inf")
        self._sent_at = float("-inf")
        # Rows in flight, counted only while batches are not trifling.
        self._under_way_rows = 0
        # When everything in flight should be answered.
        self.free_at = float("-inf")
        # Since when the version has work and answers nothing; None while it has no work.
        self._silent_since: float | None = None
        # How long it may be silent.
        self._patience_s = _PATIENCE * timeout_s
        # Target rows of the next batch.
        self.batch_rows = 1
        # Batches take so little time that there is nothing to plan.
        self.is_trifling = False
        # An upper bound that saves the hot path the exact `done_in_s`: this for any request, plus
        # the second for each row. Infinite while batches are not trifling.
        self.quick_s = 0.0
        self.row_bound_s = 0.0

    # --- sent batches and their results --------------------------------------------------------

    def sent(self, rows: int, now: float) -> float:
        """Record a sent batch, while batches are not trifling; return its expected time.

        The caller passes that time on to `answered`, `lost` or `ended`.
        """
        # 0 would mark a batch that was sent as trifling.
        cost_s = self.cost_s(rows) or 1e-9
        self._sent_at = now
        self._under_way_rows += rows
        self.free_at = max(self.free_at, now) + cost_s
        if self._silent_since is None:
            self._start_silence(rows, now)
        return cost_s

    def answered(self, rows: int, cost_s: float, sent_at: float, now: float) -> None:
        """Update the estimate with a batch that was answered."""
        ended_at = self._ended_at
        began_at = ended_at if ended_at > sent_at and self._lanes == 1 else sent_at
        took_s = now - began_at
        if self.is_trifling:
            self._ended_at = now
            self._silent_since = None
            self._skipped += 1
            if self._skipped < _SAMPLED and took_s < TRIFLE * self._timeout_s:
                return
            self._skipped = 0
        self.ended(rows, cost_s, now)
        self._size(rows, now)
        expected_s = self.cost_s(rows)
        if self._sums[0] and took_s < _TOGETHER * expected_s and began_at > sent_at:
            # Triton computed it together with the one before.
            self._sums, rows_before, took_before_s, self._spread = self._before
            rows, took_s = rows + rows_before, took_s + took_before_s
            self._size(rows, now)
            self._refit()
            expected_s = self.cost_s(rows)
        self._learn(rows, took_s, expected_s)

    def lost(self, rows: int, cost_s: float, sent_at: float, now: float) -> bool:
        """Update the estimate with a late batch; return whether the version is at fault."""
        is_fault = self.is_silent(rows, sent_at, now)
        if self._lanes > 1 and (is_fault or self._ended_at > sent_at):
            # One endpoint hangs: its circuit breaker handles that, and the others are not affected.
            self.vanished(rows, cost_s)
            return is_fault
        began_at = max(sent_at, self._ended_at)
        self._forget(rows, cost_s)
        self.is_trifling = False
        self._lost_at = now
        self._size(rows, now)
        waited_s = now - began_at
        expected_s = self.cost_s(rows)
        if waited_s > expected_s:
            took_s = _LOST * waited_s
            if waited_s < _PATIENCE * self._timeout_s and expected_s:
                # So short a wait may be an outlier, and is no evidence of a new regime.
                took_s = min(took_s, _LEAP * expected_s)
            self._learn(rows, took_s, expected_s)
            # The version is probably still computing it.
            self.free_at = max(self.free_at, began_at + self.cost_s(rows))
        self._plan()
        return is_fault

    def is_silent(self, rows: int, sent_at: float, now: float) -> bool:
        """Return whether the version is at fault that `rows` rows have no answer yet.

        It has answered nothing for longer than its limit; a version that never answered is judged
        by one row only.
        """
        since = max(sent_at, self._ended_at)
        if self._silent_since is None:
            self._start_silence(rows, since)
        else:
            since = self._silent_since = min(since, self._silent_since)
        is_news = rows > 1 and self._ended_at < 0
        return not is_news and now - since >= self._patience_s

    def ended(self, rows: int, cost_s: float, now: float) -> None:
        """Record that the version answered a batch, with a result or an error."""
        self._forget(rows, cost_s)
        self._ended_at = now
        self._silent_since = None
        self.free_at = now
        rows_left = self._under_way_rows
        if rows_left:
            self.free_at = now + self.cost_s(rows_left)
            self._start_silence(rows_left, now)

    def vanished(self, rows: int, cost_s: float) -> None:
        """Record a batch that never reached the version."""
        self._forget(rows, cost_s)
        self.free_at -= cost_s

    # --- predictions ---------------------------------------------------------------------------

    def is_known(self, now: float) -> bool:
        """Return whether there is a recent observation."""
        return self._row_s > 0 and now - max(self._ended_at, self._lost_at) < STALE_S

    def cost_s(self, rows: int) -> float:
        """Return the expected time of a batch of `rows` rows, 0 while unknown."""
        return self._fixed_s + self._row_s * rows

    def done_in_s(self, ahead: int, rows: int, now: float, reserve_s: float = 0.0) -> float:
        """Return the seconds until `rows` are answered, very probably, behind `ahead` rows.

        `reserve_s` is added. 0 while unknown.
        """
        if not self.is_known(now):
            return 0.0
        waiting_s = self._backlog_s(now) + self.drained_in_s(ahead)
        uncertain = self._variance() * (self._under_way_rows + ahead + rows)
        spare_s = PRUDENCE * sqrt(uncertain) + self._margin_s + reserve_s
        return waiting_s + self.cost_s(rows) + spare_s

    def drained_in_s(self, rows: int) -> float:
        """Return the seconds until `rows` waiting rows have been sent."""
        taken_s = self._row_s * rows + self._fixed_s * (rows // self.batch_rows)
        return taken_s / self._lanes

    def may_try(self, rows: int, left_s: float, now: float) -> bool:
        """Return whether an idle version should try a batch of `rows` rows within `left_s`.

        It must be possible on average; a size that was never observed is tried, and so is the usual
        size with its full timeout, but not more often than it could be answered.
        """
        if not self.is_known(now) or self._backlog_s(now) + self.cost_s(rows) <= left_s:
            return True
        if rows > 2 * self._largest_rows:
            return True
        weight, total, *_ = self._sums
        if rows * weight > total or left_s < _WHOLE * self._timeout_s:
            return False
        return now - self._sent_at >= min(self.cost_s(rows), self._timeout_s)

    def rows_in(self, left_s: float, now: float) -> int:
        """Return the maximum rows of a batch that must be answered within `left_s`; at least 1."""
        limit = self.batch_rows
        if self._row_s:
            limit = self._twice_at_times(limit)
        if not self._row_s or left_s <= 0 or self.done_in_s(0, limit, now) <= left_s:
            return limit
        uncertain = self._variance() * (self._under_way_rows + limit)
        spare_s = PRUDENCE * sqrt(uncertain) + self._margin_s + self._fixed_s + self._backlog_s(now)
        return max(1, min(limit, int((left_s - spare_s) / self._row_s)))

    def _twice_at_times(self, rows: int) -> int:
        self._tried += 1
        if self._tried <= self._tries_every or self._sums[0] < _TRIED_WEIGHT_MIN:
            return rows
        if self.cost_s(2 * rows) > _TRIED_MAX * self._timeout_s:
            return rows
        self._tried = 0
        self._tries_every = min(2 * self._tries_every, _TRIED)
        return min(2 * rows, 2 * self._largest_rows, self._rows_limit)

    def places(self, limit: int, now: float) -> int:
        """Return the number of batches that may be in flight, up to `limit`.

        The first is a trial. If batches are not trifling, or may not be because rows differ, one
        batch waits at the version to keep it busy: more would be computed together and be late
        together.
        """
        if not self._row_s:
            return self._lanes
        if self._lanes > 1 and self.free_at < now:
            # An endpoint is overdue, and another one may be free.
            return limit
        rows = self.batch_rows
        batch_s = self.cost_s(rows) + PRUDENCE * sqrt(self._variance() * rows)
        return limit if batch_s < TRIFLE * self._timeout_s else min(limit, self._lanes + 1)

    def _backlog_s(self, now: float) -> float:
        """Return the time until the work in flight is done; overdue work takes a little longer.

        How much longer is unknown: it may be a pause, and the circuit breaker handles silence.
        """
        backlog_s = self.free_at - now
        if self._under_way_rows and backlog_s < 0:
            backlog_s = min(-backlog_s, RESERVE * self._timeout_s)
        if self._lanes > 1:
            # The work is spread over endpoints, and one is free before all are.
            others_s = (self._lanes - 1) * self.cost_s(self.batch_rows)
            backlog_s = (backlog_s - others_s) / self._lanes
        return max(0.0, backlog_s)

    def _start_silence(self, rows: int, now: float) -> None:
        """Record that from now on the version has `rows` rows to answer."""
        self._silent_since = now
        patience_s = _PATIENCE * self._timeout_s
        if self._row_s:
            tolerated_s = min(_PATIENCE_COSTS * self.cost_s(rows), _PATIENCE_MAX * self._timeout_s)
            patience_s = max(patience_s, tolerated_s)
        self._patience_s = patience_s

    # --- estimation ----------------------------------------------------------------------------

    def _forget(self, rows: int, cost_s: float) -> None:
        # Trifling batches were not counted.
        if cost_s:
            self._under_way_rows = max(0, self._under_way_rows - rows)

    def _size(self, rows: int, now: float) -> None:
        if rows >= self._largest_rows or now - self._largest_rows_at > _SIZE_KEPT_S:
            self._largest_rows = rows
            self._largest_rows_at = now

    def _learn(self, rows: int, took_s: float, expected_s: float) -> None:
        true_s = took_s
        is_leap = self._sums[0] > 0 and (
            self._leaps > 0 or abs(took_s - expected_s) > 4 * sqrt(self._variance() * rows)
        )
        is_higher = is_leap and took_s > expected_s * _LEAP
        # One slow batch may be an outlier, and counts at most as the threshold of a leap.
        self._leaps = self._leaps + 1 if is_higher else 0
        if self._leaps > 1 or (is_leap and took_s * _LEAP < expected_s):
            self._restart()
        elif is_higher:
            took_s = expected_s * _LEAP
        self._before = (self._sums, rows, took_s, self._spread)
        weight, n, t, nn, nt = (each * _KEPT for each in self._sums)
        self._sums = (weight + 1, n + rows, t + took_s, nn + rows * rows, nt + rows * took_s)
        self._refit()
        if weight:
            # Measured from the new line: an error of extrapolation is no deviation.
            deviation_s = min(abs(true_s - self.cost_s(rows)), self._timeout_s / 2)
            self._spread += (deviation_s**2 / rows - self._spread) / (weight + 1)
        self._plan()

    def _variance(self) -> float:
        """Return the variance of a row's time, including the uncertainty of few batches."""
        return self._spread + (self._row_s / max(1.0, self._sums[0])) ** 2

    def _restart(self) -> None:
        # The variance of rows is kept.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self._leaps = 0

    def _refit(self) -> None:
        weight, n, t, nn, nt = self._sums
        if not weight:
            return
        rows, took_s = n / weight, t / weight
        ridge = _RIDGE * rows * rows
        variance = nn / weight - rows * rows
        covariance = nt / weight - rows * took_s
        # Neither part can be negative.
        slope_s = (covariance + ridge * took_s / rows) / (variance + ridge)
        self._row_s = min(max(slope_s, 1e-9), took_s / rows)
        self._fixed_s = took_s - self._row_s * rows

    def _plan(self) -> None:
        limit = min(self._rows_limit, 2 * self._largest_rows)
        short_s = SHORT * self._timeout_s - self._fixed_s
        short = int(short_s / self._row_s) if short_s > 0 else 0
        cheap = int(self._fixed_s * (1 / _FIXED_SHARE_MAX - 1) / self._row_s)
        long_s = max(LONG * self._timeout_s - self._fixed_s, self._fixed_s)
        cheap = min(cheap, int(long_s / self._row_s))
        self.batch_rows = max(1, min(limit, max(short, cheap)))
        full_s = self.cost_s(self._rows_limit)
        full_s += PRUDENCE * sqrt(self._variance() * self._rows_limit)
        was_trifling = self.is_trifling
        self.is_trifling = full_s < TRIFLE * self._timeout_s and not self._leaps
        if self.is_trifling:
            self.batch_rows = self._rows_limit
            self._under_way_rows = 0
            self.free_at = float("-inf")
            if not was_trifling:
                self._silent_since = None
            deviation_s = PRUDENCE * sqrt(self._variance())
            self.quick_s = self._fixed_s + self._margin_s
            self.row_bound_s = self._row_s + deviation_s + self._fixed_s / self.batch_rows
        else:
            self.quick_s = float("inf")
