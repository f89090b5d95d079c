"""What a version's trial says about its model's settings: pure functions of what rows took.

Proposals are shown and never applied: what somebody set stays until somebody changes it. The trial
ran on one core here, so that they are a first guess for another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# As the settings' own defaults.
TIMEOUT_MS_MIN, BATCH_ROWS_MAX = 1_000, 32
TIMEOUT_MS_MAX = 600_000
# So many requests of one row should be answered one after the other within the timeout: with fewer
# any queue at all is too long.
ROWS_IN_TIMEOUT = 10
# A batch takes at most so much of the timeout, so that those who wait for it have their turn.
BATCH_SHARE = 0.25


@dataclass(frozen=True)
class Proposal:
    """`max_batch_size` is None for a model without a batch dimension; times in milliseconds."""

    timeout_ms: int
    max_batch_size: int | None
    row_ms: float
    # What so many rows at once took; None where that was not tried.
    rows: int | None
    rows_ms: float | None


def propose(trial_ms: Mapping[str, float] | None) -> Proposal | None:
    """Return what suits a model whose trial took so many milliseconds for so many rows.

    `trial_ms` is by the number of rows, "1" among them, and one larger number where the model is
    batched. None where there was no trial. A batch takes `fixed + row × rows`.
    """
    if not trial_ms or "1" not in trial_ms:
        return None
    one_ms = trial_ms["1"]
    timeout_ms = min(max(TIMEOUT_MS_MIN, _rounded(ROWS_IN_TIMEOUT * one_ms)), TIMEOUT_MS_MAX)
    rows = max(int(rows) for rows in trial_ms)
    if rows == 1:
        return Proposal(timeout_ms, None, one_ms, None, None)
    rows_ms = trial_ms[str(rows)]
    each_ms = max(0.0, (rows_ms - one_ms) / (rows - 1))
    batch = BATCH_ROWS_MAX
    while batch > 1 and one_ms + each_ms * (batch - 1) > BATCH_SHARE * timeout_ms:
        batch //= 2
    return Proposal(timeout_ms, batch, one_ms, rows, rows_ms)


def _rounded(number: float) -> int:
    """Return the next larger of 1, 2, 5, 10, 20, 50 and so on."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power >= number:
                return step * power
        power *= 10
