"""The metrics server was down and that looked like a bad canary (flagger `scheduler_metrics.go`):
here it holds, says so to people, and moves nothing; data alone may roll back.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.rollouts.check_kinds import PROMETHEUS, WEBHOOK, CheckDocument
from apps.rollouts.models import PublishedTable, Rollout
from apps.rollouts.states import Phase
from tests.rollouts.outside import Reply, free_port, look, make_asking, prometheus, service

pytestmark = pytest.mark.django_db

FAILED = 'requests_failed{model="{model}",version="{version}"}'


def failed_at_most(bound: float) -> CheckDocument:
    return CheckDocument(check=PROMETHEUS, settings={"query": FAILED, "at_most": bound})


def let_people_be_told() -> None:
    NotificationTarget.objects.create(
        name="ops",
        kind=NotificationTarget.Kind.SLACK,
        address="https://chat.example/hook",
        created_by="anna",
        created_at=database_now(),
    )


def test_killing_the_provider_in_the_middle_holds_tells_people_and_moves_nothing(
    settings: Any, tmp_path: Path
) -> None:
    let_people_be_told()
    with prometheus(tmp_path) as provider:
        settings.PROMETHEUS_URL = provider.url
        rollout = make_asking(failed_at_most(0.5))
        assert look(rollout)[0].verdict == "pass"
        provider.kill()
        before = (rollout.phase, rollout.weight_bp, PublishedTable.objects.count())
        for _ in range(3):
            (row,) = look(rollout)
            assert row.verdict == "provider-error"
    ago = {"step_due_at": 11, "step_limit_at": -11}
    now = database_now()
    Rollout.objects.update(**{name: now - timedelta(minutes=m) for name, m in ago.items()})
    look(rollout)
    assert (rollout.phase, rollout.weight_bp, PublishedTable.objects.count()) == before
    held = OutboxMessage.objects.get(event="rollout.held").payload["reason"]
    assert f"prometheus is provider-error: Prometheus at {provider.url} cannot be asked" in held


def test_at_the_end_of_its_time_the_step_waits_for_a_person(settings: Any) -> None:
    settings.PROMETHEUS_URL = f"http://127.0.0.1:{free_port()}"
    rollout = make_asking(failed_at_most(0.5))
    past = database_now() - timedelta(seconds=1)
    Rollout.objects.update(step_due_at=past, step_limit_at=past)
    look(rollout)
    assert (rollout.phase, rollout.weight_bp) == (Phase.PAUSED, 500)
    assert "could not be decided in time: prometheus is provider-error" in rollout.reason


def test_a_bad_canary_is_still_rolled_back_by_the_others_while_one_provider_is_down(
    settings: Any,
) -> None:
    settings.PROMETHEUS_URL = f"http://127.0.0.1:{free_port()}"
    with service(lambda _: Reply(body=b'{"verdict": "fail", "reason": "fraud"}')) as outside:
        hook = CheckDocument(check=WEBHOOK, settings={"url": outside.url})
        rollout = make_asking(failed_at_most(0.5), hook)
        look(rollout)
    assert rollout.phase == Phase.ROLLING_BACK
    assert rollout.reason.endswith("says fail: fraud")
