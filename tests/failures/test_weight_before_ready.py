"""Traffic went to a version that was not ready (kserve #5983; argo-rollouts #2050 #4390).

Here no table gives a share to a version that has not answered requests on its servers, and no step
follows another before every instance serves it.
"""

from __future__ import annotations

import pytest

from apps.lib.clock import database_now
from apps.models.states import DeploymentState as State
from apps.rollouts.publication import latest_table
from apps.rollouts.services import start_rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_instance, make_model, make_plan

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("state", [State.LOADING, State.WARMING])
def test_a_version_that_is_not_warm_gets_no_share(state: State) -> None:
    model = make_model()
    make_plan()
    make_instance()
    target = model.versions.get(number=2)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    tick_rollouts()
    target.deployments.update(state=state)
    for _ in range(3):
        tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.PREPARING
    assert latest_table() is None or latest().models["digits"].split is None
    target.deployments.update(state=State.READY)
    tick_rollouts()
    assert latest().models["digits"].split is not None
