"""Compare-and-set: of two writers of the same row, one wins and the other gets a conflict."""

from __future__ import annotations

import pytest

from apps.lib.errors import Conflict
from apps.lib.transitions import IllegalTransition, compare_and_set
from apps.models.models import Deployment
from apps.models.services import change_deployment
from apps.models.states import DEPLOYMENT_TRANSITIONS, DeploymentState
from tests.rollouts.factories import ANNA, make_model


def test_an_illegal_transition_says_what_is_allowed() -> None:
    with pytest.raises(IllegalTransition, match=r"cannot become absent \(allowed: draining"):
        DEPLOYMENT_TRANSITIONS.check("it", DeploymentState.READY, DeploymentState.ABSENT)


@pytest.mark.django_db
def test_it_refuses_a_stale_revision_and_writes_nothing() -> None:
    make_model(versions=1)
    mine, theirs = Deployment.objects.get(), Deployment.objects.get()
    compare_and_set(theirs, state_field="state", reason="theirs")
    with pytest.raises(Conflict, match="changed by another user or task"):
        compare_and_set(mine, state_field="state", reason="mine")
    mine.refresh_from_db()
    assert (mine.reason, mine.revision) == ("theirs", 1)


@pytest.mark.django_db
def test_it_refuses_a_state_that_was_left_at_the_same_revision() -> None:
    make_model(versions=1)
    mine = Deployment.objects.get()
    Deployment.objects.update(state=DeploymentState.LOADING)
    with pytest.raises(Conflict):
        compare_and_set(mine, state_field="state", state=DeploymentState.DRAINING.value)


@pytest.mark.django_db
def test_a_change_leaves_a_row_that_says_who_and_why() -> None:
    make_model(versions=1)
    deployment = Deployment.objects.get()
    now = deployment.changed_at
    change_deployment(deployment, DeploymentState.DRAINING, "no longer needed", ANNA, now)
    event = deployment.events.get()
    assert (event.from_state, event.to_state) == ("ready", "draining")
    assert (event.actor, event.reason, event.at) == ("anna", "no longer needed", now)
