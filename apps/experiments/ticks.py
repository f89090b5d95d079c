"""Run the due work of experiments: fold values, start prepared ones, refresh live results, finalise
ended ones, continue imports.

Each experiment gets one bounded step. A failed step is logged, retried at the next tick, and does
not affect the others. Results of many units take seconds and files longer, so only one worker at a
time computes them: ticks of rollouts never wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.db import OperationalError, transaction
from django.db.models import Q, QuerySet

from apps.experiments.imports.services import continue_import
from apps.experiments.models import Experiment
from apps.experiments.results import finalise_result, refresh_result
from apps.experiments.services import advance_experiment
from apps.experiments.states import ExperimentState
from apps.experiments.unit_values import fold_all
from apps.lib.clock import database_now
from apps.models.locks import try_lock

log = logging.getLogger(__name__)

# Key of the advisory lock; no other lock of this installation uses it.
RESULTS_TURN = 0x1E5_017
LIVE = [ExperimentState.RUNNING, ExperimentState.PAUSED]


def tick_experiments() -> None:
    """Advance every experiment by one step. Raises OperationalError without a database."""
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
    """Continue an import. It alternates with results, so neither blocks the other."""
    try:
        continue_import()
    except OperationalError:
        raise
    except Exception:
        log.exception("experiment.import_failed")


@transaction.atomic
def _advance(pk: UUID, now: datetime) -> None:
    # The holder of the row lock runs this very step.
    due = Experiment.objects.select_for_update(skip_locked=True)
    experiment = due.filter(pk=pk, state=ExperimentState.PREPARING).first()
    if experiment is not None:
        advance_experiment(experiment=experiment, now=now)


def _refresh(pk: UUID, now: datetime) -> None:
    refresh_result(Experiment.objects.get(pk=pk), now)


def _finalise(pk: UUID, now: datetime) -> None:
    finalise_result(Experiment.objects.get(pk=pk), now)
