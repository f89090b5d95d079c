"""A failing promotion broke the healthy version (flagger #1898 #1931 #1932; argo-rollouts #3078).

Here no step removes a version that has traffic: stable and the previous version stay in the table
and loaded, whatever happens to the target.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.models.states import DeploymentState as State
from apps.rollouts.models import Rollout
from apps.rollouts.retirement import RETIRE_AFTER, needed_versions, retire_versions
from apps.rollouts.services import promote_now
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def age_deployments(rollout: Rollout) -> None:
    for version in rollout.model.versions.all():
        at = database_now() - RETIRE_AFTER - timedelta(minutes=1)
        version.deployments.update(changed_at=at)


def test_while_a_target_fails_stable_stays_and_serves() -> None:
    rollout = make_baking(make_model())
    make_instance()
    rollout.target.deployments.update(state=State.FAILED)
    age_deployments(rollout)
    tick_rollouts()
    retire_versions()
    route = latest().models["digits"]
    assert route.stable == "1"
    assert "1" in route.versions


def test_a_promotion_unloads_nothing_that_an_instance_may_still_call() -> None:
    rollout = make_baking(make_model())
    make_instance(applied_generation=0)
    promote_now(rollout=rollout, actor=ANNA, now=database_now())
    age_deployments(rollout)
    retire_versions()
    assert rollout.baseline is not None
    assert rollout.baseline.pk in needed_versions(database_now())
    assert {"1", "2"} <= latest().models["digits"].versions.keys()
    rollout.refresh_from_db()
    # Until every instance has acknowledged, the promotion is not complete and can be aborted.
    assert rollout.phase == Phase.PROMOTING
