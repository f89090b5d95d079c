"""What is due for experiments: values are folded, prepared ones start to run, live ones get a new
result, ended ones their final one.

One bounded step for each; one that fails is logged and tried again at the next tick, and costs the
others nothing. Results of many units take seconds, files longer: one worker is at them at a time,
so that the ticks of rollouts never wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.db import OperationalError, transaction
from django.db.models import Q, QuerySet

from apps.experiments.imports.services import import_some
from apps.experiments.models import Experiment
from apps.experiments.results import finalise_result, refresh_result
from apps.experiments.services import advance_experiment
from apps.experiments.states import ExperimentState
from apps.experiments.unit_values import fold_all
from apps.lib.clock import database_now
from apps.models.locks import try_lock

log = logging.getLogger(__name__)

# Any number that no other advisory lock of ours has.
RESULTS_TURN = 0x1E5_017
LIVE = [ExperimentState.RUNNING, ExperimentState.PAUSED]


def tick_experiments() -> None:
    """Take every experiment one step on. Raises OperationalError without a database."""
    now = database_now()
    experiments = Experiment.objects.order_by("pk")
    _for_each(experiments.filter(state=ExperimentState.PREPARING), _advance)
    with try_lock(RESULTS_TURN) as is_locked:
        if not is_locked:
            return
        fold_all()
        due = Q(refresh_due_at__isnull=True) | Q(refresh_due_at__lte=now)
        _for_each(experiments.filter(due, state__in=LIVE), _refresh)
        ended = experiments.filter(state=ExperimentState.COMPLETED, refresh_due_at__isnull=False)
        _for_each(ended, _finalise)
        _import()


def _for_each(experiments: QuerySet[Experiment], step: Callable[[UUID, datetime], None]) -> None:
    for pk in list(experiments.values_list("pk", flat=True)):
        try:
            step(pk, database_now())
        except OperationalError:
            raise
        except Exception:
            log.exception("experiment.tick_failed %s", pk)


def _import() -> None:
    """Read on in a file of outcomes; in turn with results, neither keeps the other waiting."""
    try:
        import_some()
    except OperationalError:
        raise
    except Exception:
        log.exception("experiment.import_failed")


@transaction.atomic
def _advance(pk: UUID, now: datetime) -> None:
    # Whoever holds the row is doing this very step.
    due = Experiment.objects.select_for_update(skip_locked=True)
    experiment = due.filter(pk=pk, state=ExperimentState.PREPARING).first()
    if experiment is not None:
        advance_experiment(experiment=experiment, now=now)


def _refresh(pk: UUID, now: datetime) -> None:
    refresh_result(Experiment.objects.get(pk=pk), now)


def _finalise(pk: UUID, now: datetime) -> None:
    finalise_result(Experiment.objects.get(pk=pk), now)
