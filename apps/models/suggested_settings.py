"""Proposes settings of a model from the durations of a version's trial. Pure.

Proposals are only shown, never applied. The trial ran on one core of the control plane's machine,
so a proposal is a first estimate for other machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The defaults of the settings.
TIMEOUT_MS_MIN, BATCH_ROWS_MAX = 1_000, 32
TIMEOUT_MS_MAX = 600_000
# This number of requests with one row should be computed sequentially within the timeout: with
# fewer, even a short queue is too long.
ROWS_IN_TIMEOUT = 10
# A batch takes at most this share of the timeout, so that queued requests can follow.
BATCH_SHARE = 0.25


@dataclass(frozen=True)
class Proposal:
    """`max_batch_size` is None for a model without a batch dimension; times in milliseconds."""

    timeout_ms: int
    max_batch_size: int | None
    row_ms: float
    # The duration of `rows` rows at once; None if not tried.
    rows: int | None
    rows_ms: float | None


def propose(trial_ms: Mapping[str, float] | None) -> Proposal | None:
    """Return the proposed settings for a trial; None without a trial.

    `trial_ms` are durations in ms by the number of rows: "1", and one larger number if the model is
    batched. A batch is modelled as `fixed + row × rows`.
    """
    if not trial_ms or "1" not in trial_ms:
        return None
    one_ms = trial_ms["1"]
    timeout_ms = min(max(TIMEOUT_MS_MIN, _round_up(ROWS_IN_TIMEOUT * one_ms)), TIMEOUT_MS_MAX)
    rows = max(int(rows) for rows in trial_ms)
    if rows == 1:
        return Proposal(timeout_ms, None, one_ms, None, None)
    rows_ms = trial_ms[str(rows)]
    each_ms = max(0.0, (rows_ms - one_ms) / (rows - 1))
    batch = BATCH_ROWS_MAX
    while batch > 1 and one_ms + each_ms * (batch - 1) > BATCH_SHARE * timeout_ms:
        batch //= 2
    return Proposal(timeout_ms, batch, one_ms, rows, rows_ms)


def _round_up(number: float) -> int:
    """Return the next larger of 1, 2, 5, 10, 20, 50 and so on."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power >= number:
                return step * power
        power *= 10
