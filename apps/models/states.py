"""The life of a deployment (a version on a serving cluster), and that of a version or a model.

Rules of deployments: only `ready` may be routed to; a deployment leaves `ready` for `loading` again
when a probe finds that the server lost it; `failed` and `absent` start over with `loading`; nothing
goes from `ready` to `absent` without draining, so that nobody who still calls it meets an unloaded
version.

Rules of versions and models: only an `active` one is placed or gets traffic; what is `archived` is
out of the lists and may be restored; a deletion cannot be called back, and `deleted` leaves a row
that history reads and that keeps the number from being given again. The name of a deleted model is
free: registering a version makes it `active` anew.
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


class RegistryState(models.TextChoices):
    ACTIVE = "active"
    ARCHIVED = "archived"
    DELETING = "deleting"
    DELETED = "deleted"


R = RegistryState

VERSION_TRANSITIONS: Transitions[RegistryState] = Transitions(
    {
        R.ACTIVE: frozenset({R.ARCHIVED, R.DELETING}),
        R.ARCHIVED: frozenset({R.ACTIVE, R.DELETING}),
        R.DELETING: frozenset({R.DELETED}),
        R.DELETED: frozenset(),
    }
)
MODEL_TRANSITIONS: Transitions[RegistryState] = Transitions(
    {**VERSION_TRANSITIONS.table, R.DELETED: frozenset({R.ACTIVE})}
)
