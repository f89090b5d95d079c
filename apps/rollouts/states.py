"""Phases of a rollout and their transitions.

Rules: weight rises only in `baking`; `paused` keeps weight and guardrail checks; every live phase
may go to `rolling_back`, so that an abort is always possible; `preparing` may go straight to
`promoting` without a control to compare with (first version, instant rollback); only `preparing`
may fail, because no traffic has moved yet.
"""

from __future__ import annotations

from django.db import models

from apps.lib.transitions import Transitions


class Phase(models.TextChoices):
    PENDING = "pending"
    PREPARING = "preparing"
    BAKING = "baking"
    PAUSED = "paused"
    PROMOTING = "promoting"
    SUCCEEDED = "succeeded"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


P = Phase

PHASE_TRANSITIONS: Transitions[Phase] = Transitions(
    {
        P.PENDING: frozenset({P.PREPARING, P.ROLLING_BACK}),
        P.PREPARING: frozenset({P.BAKING, P.PROMOTING, P.ROLLING_BACK, P.FAILED}),
        # baking → baking: the next step, or an approval.
        P.BAKING: frozenset({P.BAKING, P.PAUSED, P.PROMOTING, P.ROLLING_BACK}),
        P.PAUSED: frozenset({P.BAKING, P.PROMOTING, P.ROLLING_BACK}),
        P.PROMOTING: frozenset({P.SUCCEEDED, P.ROLLING_BACK}),
        P.SUCCEEDED: frozenset(),
        P.ROLLING_BACK: frozenset({P.ROLLED_BACK}),
        P.ROLLED_BACK: frozenset(),
        P.FAILED: frozenset(),
    }
)
LIVE_PHASES = PHASE_TRANSITIONS.live
