"""States and transitions of deployments (versions on serving clusters), versions and models.

Deployments: only a `ready` one gets traffic. It returns from `ready` to `loading` if a probe shows
that the server lost it. `failed` and `absent` restart with `loading`. `ready` never changes to
`absent` without draining, so no instance calls an unloaded version.

Versions and models: only an `active` one is deployed or gets traffic. An `archived` one is not in
the lists and can be restored. A deletion cannot be undone; the `deleted` row stays for the history,
and its number is not reused. The name of a deleted model is free: registering a version makes the
model `active` again.
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
