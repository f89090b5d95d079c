"""How long a version takes for a batch, and so when a request that joins would be answered.

The time of a batch is taken as `fixed + row × rows`, fitted to the latest batches (least squares
with exponential forgetting, drawn towards a line through the origin). The version is taken to do
one batch after the other, so that the time of a batch begins when the one before it was answered.
What never was tried is extrapolated: twice the rows take at most twice the time. Since the costs of
rows differ, a deadline is only believed to be met with `PRUDENCE` standard deviations to spare.

A batch that misses its deadline teaches how long it takes at least. Whether that is the version's
fault is a question of silence: how long it has answered nothing while it had something to do.
"""

from __future__ import annotations

from math import sqrt

# For so long after the last batch the time is believed.
STALE_S = 5.0
# Deviations that are left for rows that cost more than others: 49 of 50 batches take no longer.
PRUDENCE = 2.0
# Who joins a queue must have so much of the timeout to spare, or all in it are on the brink.
RESERVE = 0.05
# Between the version's answer and the client's, as a part of the timeout and at most so long.
_MARGIN, _MARGIN_MAX_S = 0.02, 0.004
# Parts of the timeout. With full batches that take less than the first there is nothing to plan:
# several of them are done in time. Beyond the second a batch grows only where that makes its rows
# cheaper, beyond the third only while its fixed part is the larger one.
TRIFLE, SHORT, LONG = 1 / 16, 1 / 16, 1 / 4
# A batch grows until its fixed part is at most so much of it.
_FIXED_SHARE_MAX = 0.1
# What is left of the weight of earlier batches with each new one.
_KEPT = 0.9
# How strongly the line is drawn through the origin.
_RIDGE = 0.02
# A batch that takes so many times longer or shorter than was thought is another regime.
_LEAP = 3.0
# One of so many trifling batches is learnt from.
_SAMPLED = 8
# Answers that come so close together, as a part of what a batch takes, were computed together.
_TOGETHER = 0.1
# A batch that was not answered in time is taken to need so many times the time that it had.
_LOST = 1.5
# A request that has so much of the timeout left did not wait: no other one has more.
_WHOLE = 0.7
# One of so many batches is twice as large, if that should take no more than this part of the
# timeout: that alone shows whether size pays.
_TRIED, _TRIED_MAX = 16, 0.7
# So much must be known before.
_TRIED_WEIGHT_MIN = 3.0
# For so long the size of the largest batch is remembered.
_SIZE_KEPT_S = 60.0
# Silence is the version's fault beyond the first part of the timeout and so many times what it was
# thought to take (rows differ tenfold), but beyond the second part in any case.
_PATIENCE, _PATIENCE_MAX, _PATIENCE_COSTS = 0.5, 4.0, 12.0


class Pace:
    """Times are seconds on any monotonic clock, passed in by the caller."""

    __slots__ = (
        "_before",
        "_ended_at",
        "_fixed_s",
        "_lanes",
        "_leaps",
        "_lost_at",
        "_margin_s",
        "_patience_s",
        "_row_s",
        "_rows_limit",
        "_rows_sent",
        "_seen_rows",
        "_seen_rows_at",
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
        # Rows of a batch by the model's settings.
        self._rows_limit = rows_max
        # The time that requests have.
        self._timeout_s = timeout_s
        # What is left for the way back to the client.
        self._margin_s = min(_MARGIN * timeout_s, _MARGIN_MAX_S)
        # Batches that are computed at the same time: one on each instance of each endpoint.
        self._lanes = lanes
        # Weight, rows, time, rows², rows × time: decaying sums over batches.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        # The same before the last batch, with its rows, its time and the spread at the time.
        self._before = (self._sums, 0, 0.0, 0.0)
        # What a batch takes: a fixed part, and for each row; nought while nothing is known.
        self._fixed_s = 0.0
        self._row_s = 0.0
        # The variance of a row's time.
        self._spread = 0.0
        # Batches in a row that took a multiple of what was thought.
        self._leaps = 0
        # Trifling batches since the last one that was learnt from.
        self._skipped = 0
        # The largest batch of late, and when it was.
        self._seen_rows = 0
        self._seen_rows_at = 0.0
        # Batches since one that was twice as large, and after how many the next one comes.
        self._tried = 0
        self._tries_every = 1
        # When the version last answered anything, and when a batch last left.
        self._ended_at = float("-inf")
        # When a batch was last lost.
        self._lost_at = float("-inf")
        self._sent_at = float("-inf")
        # Rows under way, known only while batches are no trifle.
        self._under_way_rows = 0
        # When all that is under way should be answered.
        self.free_at = float("-inf")
        # Since when the version owes an answer and gives none; None while it owes nothing.
        self._silent_since: float | None = None
        # For how long it may be silent.
        self._patience_s = _PATIENCE * timeout_s
        # Rows of the next batch.
        self.batch_rows = 1
        # Batches take so little that there is nothing to plan.
        self.is_trifling = False
        # The bound that spares the hot path the exact answer of `done_in_s`: for any request this,
        # and so much for each row. No bound while batches are no trifle.
        self.quick_s = 0.0
        self.row_bound_s = 0.0

    # --- what leaves, and what becomes of it ---------------------------------------------------

    def sent(self, rows: int, now: float) -> float:
        """Take note of a batch that leaves while batches are no trifle; return its expected time.

        Whoever sent it passes that on to `answered`, `lost` or `ended`.
        """
        # Nought would be that of a batch that left as a trifle.
        cost_s = self.cost_s(rows) or 1e-9
        self._sent_at = now
        self._under_way_rows += rows
        self.free_at = max(self.free_at, now) + cost_s
        if self._silent_since is None:
            self._owe(rows, now)
        return cost_s

    def answered(self, rows: int, cost_s: float, sent_at: float, now: float) -> None:
        """Learn from a batch that was answered."""
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
            # Triton computed it with the one before.
            self._sums, rows_before, took_before_s, self._spread = self._before
            rows, took_s = rows + rows_before, took_s + took_before_s
            self._size(rows, now)
            self._refit()
            expected_s = self.cost_s(rows)
        self._learn(rows, took_s, expected_s)

    def lost(self, rows: int, cost_s: float, sent_at: float, now: float) -> bool:
        """Learn from a batch that missed its deadline; return whether it is the version's fault."""
        is_fault = self.is_silent(rows, sent_at, now)
        if self._lanes > 1 and (is_fault or self._ended_at > sent_at):
            # One endpoint hangs, which is for its circuit to find, and says nothing of the others.
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
                # So little time may end in an accident, and is no news of another regime.
                took_s = min(took_s, _LEAP * expected_s)
            self._learn(rows, took_s, expected_s)
            # It is computed still, as far as anybody knows.
            self.free_at = max(self.free_at, began_at + self.cost_s(rows))
        self._plan()
        return is_fault

    def is_silent(self, rows: int, sent_at: float, now: float) -> bool:
        """Return whether it is the version's fault that so many rows have no answer yet.

        It has answered nothing for longer than it may; where it never did, one row says so.
        """
        since = max(sent_at, self._ended_at)
        if self._silent_since is None:
            self._owe(rows, since)
        else:
            since = self._silent_since = min(since, self._silent_since)
        is_news = rows > 1 and self._ended_at < 0
        return not is_news and now - since >= self._patience_s

    def ended(self, rows: int, cost_s: float, now: float) -> None:
        """Take note of a sign of life: the batch was answered, be it with an error."""
        self._forget(rows, cost_s)
        self._ended_at = now
        self._silent_since = None
        self.free_at = now
        rows_left = self._under_way_rows
        if rows_left:
            self.free_at = now + self.cost_s(rows_left)
            self._owe(rows_left, now)

    def vanished(self, rows: int, cost_s: float) -> None:
        """Take note of a batch that the version never saw."""
        self._forget(rows, cost_s)
        self.free_at -= cost_s

    # --- when something would be done ----------------------------------------------------------

    def is_known(self, now: float) -> bool:
        """Return whether the version's time was seen of late."""
        return self._row_s > 0 and now - max(self._ended_at, self._lost_at) < STALE_S

    def cost_s(self, rows: int) -> float:
        """Return how long a batch of so many rows takes on average, nought while unknown."""
        return self._fixed_s + self._row_s * rows

    def done_in_s(self, ahead: int, rows: int, now: float, reserve_s: float = 0.0) -> float:
        """Return in how many seconds `rows` would surely be answered behind `ahead` waiting ones.

        `reserve_s` comes on top. Nought while that is not known.
        """
        if not self.is_known(now):
            return 0.0
        waiting_s = self._backlog_s(now) + self.drained_in_s(ahead)
        uncertain = self._variance() * (self._under_way_rows + ahead + rows)
        spare_s = PRUDENCE * sqrt(uncertain) + self._margin_s + reserve_s
        return waiting_s + self.cost_s(rows) + spare_s

    def drained_in_s(self, rows: int) -> float:
        """Return in how many seconds so many waiting rows will have left."""
        taken_s = self._row_s * rows + self._fixed_s * (rows // self.batch_rows)
        return taken_s / self._lanes

    def may_try(self, rows: int, left_s: float, now: float) -> bool:
        """Return whether a version that has nothing to do should try to do it in `left_s`.

        On average it must be possible; a size that was never seen is tried, and so is the usual
        size with all its time left, though not more often than it could be answered.
        """
        if not self.is_known(now) or self._backlog_s(now) + self.cost_s(rows) <= left_s:
            return True
        if rows > 2 * self._seen_rows:
            return True
        weight, total, *_ = self._sums
        if rows * weight > total or left_s < _WHOLE * self._timeout_s:
            return False
        return now - self._sent_at >= min(self.cost_s(rows), self._timeout_s)

    def rows_in(self, left_s: float, now: float) -> int:
        """Return how many rows a batch may have that is to be answered in `left_s`; at least 1."""
        most = self.batch_rows
        if self._row_s:
            most = self._twice_at_times(most)
        if not self._row_s or left_s <= 0 or self.done_in_s(0, most, now) <= left_s:
            return most
        uncertain = self._variance() * (self._under_way_rows + most)
        spare_s = PRUDENCE * sqrt(uncertain) + self._margin_s + self._fixed_s + self._backlog_s(now)
        return max(1, min(most, int((left_s - spare_s) / self._row_s)))

    def _twice_at_times(self, rows: int) -> int:
        self._tried += 1
        if self._tried <= self._tries_every or self._sums[0] < _TRIED_WEIGHT_MIN:
            return rows
        if self.cost_s(2 * rows) > _TRIED_MAX * self._timeout_s:
            return rows
        self._tried = 0
        self._tries_every = min(2 * self._tries_every, _TRIED)
        return min(2 * rows, 2 * self._seen_rows, self._rows_limit)

    def places(self, most: int, now: float) -> int:
        """Return how many batches may be under way, up to `most`.

        One is tried first. Of those that are no trifle, or may be none where rows differ, one waits
        at the version, to keep it busy: more would be computed together and be late together.
        """
        if not self._row_s:
            return self._lanes
        if self._lanes > 1 and self.free_at < now:
            # An endpoint is overdue, and another one may be free.
            return most
        rows = self.batch_rows
        batch_s = self.cost_s(rows) + PRUDENCE * sqrt(self._variance() * rows)
        return most if batch_s < TRIFLE * self._timeout_s else min(most, self._lanes + 1)

    def _backlog_s(self, now: float) -> float:
        """Return how long what is under way takes still; what is overdue takes a little longer.

        How much longer nobody knows: it may be a pause, and silence is the breaker's business.
        """
        backlog_s = self.free_at - now
        if self._under_way_rows and backlog_s < 0:
            backlog_s = min(-backlog_s, RESERVE * self._timeout_s)
        if self._lanes > 1:
            # It is spread, and one endpoint is free before all are.
            others_s = (self._lanes - 1) * self.cost_s(self.batch_rows)
            backlog_s = (backlog_s - others_s) / self._lanes
        return max(0.0, backlog_s)

    def _owe(self, rows: int, now: float) -> None:
        """Take note that from now on the version owes an answer for so many rows."""
        self._silent_since = now
        patience_s = _PATIENCE * self._timeout_s
        if self._row_s:
            thought_s = min(_PATIENCE_COSTS * self.cost_s(rows), _PATIENCE_MAX * self._timeout_s)
            patience_s = max(patience_s, thought_s)
        self._patience_s = patience_s

    # --- what is learnt ------------------------------------------------------------------------

    def _forget(self, rows: int, cost_s: float) -> None:
        # What left as a trifle was not counted in.
        if cost_s:
            self._under_way_rows = max(0, self._under_way_rows - rows)

    def _size(self, rows: int, now: float) -> None:
        if rows >= self._seen_rows or now - self._seen_rows_at > _SIZE_KEPT_S:
            self._seen_rows = rows
            self._seen_rows_at = now

    def _learn(self, rows: int, took_s: float, expected_s: float) -> None:
        true_s = took_s
        is_leap = self._sums[0] > 0 and (
            self._leaps > 0 or abs(took_s - expected_s) > 4 * sqrt(self._variance() * rows)
        )
        is_higher = is_leap and took_s > expected_s * _LEAP
        # Upwards once may be an accident, and counts for no more than it takes to be a leap.
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
            # From the new line: what was only extrapolated so far is no deviation.
            deviation_s = min(abs(true_s - self.cost_s(rows)), self._timeout_s / 2)
            self._spread += (deviation_s**2 / rows - self._spread) / (weight + 1)
        self._plan()

    def _variance(self) -> float:
        """Return the variance of a row's time, with what few batches cannot tell."""
        return self._spread + (self._row_s / max(1.0, self._sums[0])) ** 2

    def _restart(self) -> None:
        # How much rows differ is kept.
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
        """Choose the size of the next batches."""
        most = min(self._rows_limit, 2 * self._seen_rows)
        short_s = SHORT * self._timeout_s - self._fixed_s
        short = int(short_s / self._row_s) if short_s > 0 else 0
        cheap = int(self._fixed_s * (1 / _FIXED_SHARE_MAX - 1) / self._row_s)
        long_s = max(LONG * self._timeout_s - self._fixed_s, self._fixed_s)
        cheap = min(cheap, int(long_s / self._row_s))
        self.batch_rows = max(1, min(most, max(short, cheap)))
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
