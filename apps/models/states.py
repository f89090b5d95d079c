"""The life of a deployment: a version on a serving cluster.

Rules: only `ready` may be routed to; a deployment leaves `ready` for `loading` again when a probe
finds that the server lost it; `failed` and `absent` start over with `loading`; nothing goes from
`ready` to `absent` without draining, so that nobody who still calls it meets an unloaded version.
"""

from __future__ import annotations

from django.db import models

from apps.lib.transitions import Transitions


class DeploymentState(models.TextChoices):
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    ABSENT = "absent"
    FAILED = "failed"


D = DeploymentState

DEPLOYMENT_TRANSITIONS: Transitions[DeploymentState] = Transitions(
    {
        D.LOADING: frozenset({D.WARMING, D.FAILED, D.DRAINING}),
        D.WARMING: frozenset({D.READY, D.FAILED, D.LOADING, D.DRAINING}),
        D.READY: frozenset({D.LOADING, D.DRAINING}),
        D.DRAINING: frozenset({D.ABSENT, D.LOADING}),
        D.ABSENT: frozenset({D.LOADING}),
        D.FAILED: frozenset({D.LOADING, D.DRAINING}),
    }
)
