"""The life of a rollout.

Rules: `baking` is the only phase in which weight rises; `paused` keeps its weight and its guardrail
checks; every live phase may go to `rolling_back`, which is how an abort always wins; `preparing`
may go straight to `promoting` when there is nothing to compare with (a model's first version, an
instant rollback); only `preparing` may fail, because until then no traffic has moved.
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
        # baking → baking is a step: the next weight, or a resumed one.
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
