"""One tick advances every experiment by one step; a failed step does not affect the others."""

from __future__ import annotations

from uuid import UUID

import pytest
from django.db import connections

from apps.experiments import ticks
from apps.experiments.models import Experiment
from apps.experiments.services import start_experiment
from apps.experiments.tasks import refresh_results_task
from apps.models.states import DeploymentState
from tests.experiments.factories import (
    ANNA,
    NOW,
    make_draft,
    make_model,
    make_running,
    set_deployments,
)

pytestmark = pytest.mark.django_db


def test_a_prepared_experiment_runs_and_has_a_result_after_one_tick() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    set_deployments(experiment, DeploymentState.READY)

    refresh_results_task()

    experiment.refresh_from_db()
    assert experiment.state == "running"
    assert experiment.result["verdict"]
    assert experiment.refreshed_at is not None


def test_one_worker_at_a_time_computes_results_and_prepared_experiments_start() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    set_deployments(experiment, DeploymentState.READY)
    another = connections.create_connection("default")
    with another.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [ticks.RESULTS_TURN])
        refresh_results_task()
        experiment.refresh_from_db()
        meanwhile = (experiment.state, experiment.refreshed_at)
    another.close()

    refresh_results_task()

    experiment.refresh_from_db()
    assert meanwhile == ("running", None)
    assert experiment.refreshed_at is not None


def test_drafts_are_left_alone() -> None:
    experiment = make_draft()

    refresh_results_task()

    experiment.refresh_from_db()
    assert (experiment.state, experiment.result) == ("draft", {})


def test_a_failed_experiment_does_not_affect_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make_running()
    make_running(name="other", model=make_model("letters"), metric=broken.metric)
    refresh = ticks._refresh

    def fail_once(pk: UUID, now: object) -> None:
        if pk == broken.pk:
            raise RuntimeError("bug")
        refresh(pk, now)  # type: ignore[arg-type]

    monkeypatch.setattr(ticks, "_refresh", fail_once)
    ticks.tick_experiments()

    assert Experiment.objects.filter(refreshed_at=None).get() == broken


def test_a_failed_import_does_not_affect_results(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_running()

    def fail() -> bool:
        raise RuntimeError("bug")

    monkeypatch.setattr(ticks, "continue_import", fail)
    ticks.tick_experiments()

    experiment.refresh_from_db()
    assert experiment.refreshed_at is not None
