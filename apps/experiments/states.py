"""States of an experiment and the transitions between them.

Only a draft can be edited. `preparing` loads the variants' versions and routes nothing yet. Only
`running` assigns units. `paused` keeps the split and assigns no unit. `completed` is final, and its
result is frozen.
"""

from __future__ import annotations

from django.db import models

from apps.lib.transitions import Transitions


class ExperimentState(models.TextChoices):
    DRAFT = "draft"
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"


E = ExperimentState

EXPERIMENT_TRANSITIONS: Transitions[ExperimentState] = Transitions(
    {
        E.DRAFT: frozenset({E.PREPARING}),
        E.PREPARING: frozenset({E.RUNNING, E.FAILED, E.COMPLETED}),
        E.RUNNING: frozenset({E.PAUSED, E.COMPLETED}),
        E.PAUSED: frozenset({E.RUNNING, E.COMPLETED}),
        E.COMPLETED: frozenset(),
        E.FAILED: frozenset(),
    }
)
