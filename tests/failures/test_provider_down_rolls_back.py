"""The metrics server was down and that looked like a bad canary (flagger `scheduler_metrics.go`):
here it holds, notifies people and moves nothing; only data can roll back.
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
from tests.rollouts.outside import (
    CannedAnswer,
    free_port,
    look,
    make_checked_rollout,
    prometheus,
    service,
)

pytestmark = pytest.mark.django_db

FAILED = 'requests_failed{model="{model}",version="{version}"}'


def failed_at_most(bound: float) -> CheckDocument:
    return CheckDocument(check=PROMETHEUS, settings={"query": FAILED, "at_most": bound})


def add_notification_target() -> None:
    NotificationTarget.objects.create(
        name="ops",
        kind=NotificationTarget.Kind.SLACK,
        address="https://chat.example/hook",
        created_by="anna",
        created_at=database_now(),
    )


def test_a_killed_provider_holds_the_rollout_and_notifies_people(
    settings: Any, tmp_path: Path
) -> None:
    add_notification_target()
    with prometheus(tmp_path) as provider:
        settings.PROMETHEUS_URL = provider.url
        rollout = make_checked_rollout(failed_at_most(0.5))
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
    assert f"prometheus is provider-error: Prometheus at {provider.url} cannot be reached" in held


def test_at_its_time_limit_the_step_waits_for_a_person(settings: Any) -> None:
    settings.PROMETHEUS_URL = f"http://127.0.0.1:{free_port()}"
    rollout = make_checked_rollout(failed_at_most(0.5))
    past = database_now() - timedelta(seconds=1)
    Rollout.objects.update(step_due_at=past, step_limit_at=past)
    look(rollout)
    assert (rollout.phase, rollout.weight_bp) == (Phase.PAUSED, 500)
    assert "no decision within the time limit: prometheus is provider-error" in rollout.reason


def test_a_bad_canary_is_still_rolled_back_by_the_others_while_one_provider_is_down(
    settings: Any,
) -> None:
    settings.PROMETHEUS_URL = f"http://127.0.0.1:{free_port()}"
    with service(lambda _: CannedAnswer(body=b'{"verdict": "fail", "reason": "fraud"}')) as outside:
        hook = CheckDocument(check=WEBHOOK, settings={"url": outside.url})
        rollout = make_checked_rollout(failed_at_most(0.5), hook)
        look(rollout)
    assert rollout.phase == Phase.ROLLING_BACK
    assert rollout.reason.endswith("returned fail: fraud")
