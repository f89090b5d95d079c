"""One person removes a version while another one starts to use it: the second is refused."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction

from apps.experiments.services import start_experiment
from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import Deployment, LiveSplit, ModelVersion
from apps.models.services import deploy_version
from apps.models.states import DeploymentState
from apps.rollouts.services import start_rollout
from apps.rollouts.undeploying import archive_version, delete_version, undeploy_version
from tests.experiments.factories import make_draft
from tests.rollouts.factories import ANNA, make_model, make_plan
from tests.rollouts.test_plan_store import beside

pytestmark = pytest.mark.django_db(transaction=True)


def version(number: int) -> ModelVersion:
    return ModelVersion.objects.select_related("model").get(number=number)


def begin_rollout() -> None:
    target = version(2)
    start_rollout(model=target.model, target=target, actor=ANNA, now=database_now())


def begin_placing() -> None:
    deploy_version(version=version(2), actor=ANNA, now=database_now())


@pytest.mark.parametrize("service", [undeploy_version, archive_version, delete_version])
def test_who_takes_away_what_a_rollout_just_took_is_told(service: Any) -> None:
    make_model()
    make_plan()
    with transaction.atomic():
        begin_rollout()
        thread, raised = beside(lambda: service(version=version(2), actor=ANNA, now=database_now()))
    thread.join()
    assert [type(error) for error in raised] == [Conflict]
    assert "the rollout to version 2 is pending" in str(raised[0])
    assert version(2).is_active
    assert Deployment.objects.get(version__number=2).state == DeploymentState.READY


@pytest.mark.parametrize("service", [archive_version, delete_version])
@pytest.mark.parametrize("begin", [begin_rollout, begin_placing])
def test_who_begins_to_need_what_was_just_taken_away_is_told(service: Any, begin: Any) -> None:
    make_model()
    make_plan()
    with transaction.atomic():
        service(version=version(2), actor=ANNA, now=database_now())
        thread, raised = beside(begin)
    thread.join()
    assert [type(error) for error in raised] == [Conflict]
    assert "digits:2 is" in str(raised[0])
    assert not LiveSplit.objects.exists()


def test_a_first_placing_and_a_deletion_take_turns() -> None:
    make_model()
    Deployment.objects.filter(version__number=2).delete()
    with transaction.atomic():
        begin_placing()
        thread, raised = beside(
            lambda: delete_version(version=version(2), actor=ANNA, now=database_now())
        )
    thread.join()
    assert "digits:2 is loading" in str(raised[0])

    Deployment.objects.filter(version__number=2).delete()
    with transaction.atomic():
        delete_version(version=version(2), actor=ANNA, now=database_now())
        thread, raised = beside(begin_placing)
    thread.join()
    assert "digits:2 is deleting" in str(raised[0])
    assert not Deployment.objects.filter(version__number=2).exists()


def test_an_experiment_that_starts_and_an_archiving_take_turns() -> None:
    draft = make_draft()
    # Only a draft that was begun before this was a rule can be in this place.
    from apps.rollouts import version_usage

    finders, version_usage._finders[:] = list(version_usage._finders), []
    try:
        with transaction.atomic():
            archive_version(version=version(2), actor=ANNA, now=database_now())
            thread, raised = beside(
                lambda: start_experiment(experiment=draft, actor=ANNA, now=database_now())
            )
        thread.join()
    finally:
        version_usage._finders[:] = finders
    assert "digits:2 is archived" in str(raised[0])
    assert not LiveSplit.objects.exists()


def test_two_who_delete_and_archive_the_same_version_are_told_apart() -> None:
    make_model()
    with transaction.atomic():
        delete_version(version=version(3), actor=ANNA, now=database_now())
        thread, raised = beside(
            lambda: archive_version(version=version(3), actor=ANNA, now=database_now())
        )
    thread.join()
    assert "digits:3 is deleting and cannot become archived" in str(raised[0])
