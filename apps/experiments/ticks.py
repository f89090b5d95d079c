"""What is due for experiments: prepared ones start to run, running ones get a new result.

One bounded step for each; one that fails is logged and tried again at the next tick, and costs the
others nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.db import OperationalError, transaction

from apps.experiments.models import Experiment
from apps.experiments.results import refresh_result
from apps.experiments.services import advance_experiment
from apps.experiments.states import ExperimentState
from apps.lib.clock import database_now

log = logging.getLogger(__name__)


def tick_experiments() -> None:
    """Take every live experiment one step on. Raises OperationalError without a database."""
    _for_each(ExperimentState.PREPARING, _advance)
    _for_each(ExperimentState.RUNNING, _refresh)


def _for_each(state: ExperimentState, step: Callable[[UUID, datetime], None]) -> None:
    for pk in list(Experiment.objects.filter(state=state).values_list("pk", flat=True)):
        try:
            step(pk, database_now())
        except OperationalError:
            raise
        except Exception:
            log.exception("experiment.tick_failed %s", pk)


@transaction.atomic
def _advance(pk: UUID, now: datetime) -> None:
    # Whoever holds the row is doing this very step.
    due = Experiment.objects.select_for_update(skip_locked=True)
    experiment = due.filter(pk=pk, state=ExperimentState.PREPARING).first()
    if experiment is not None:
        advance_experiment(experiment=experiment, now=now)


def _refresh(pk: UUID, now: datetime) -> None:
    experiment = Experiment.objects.get(pk=pk)
    refresh_result(experiment, now)
