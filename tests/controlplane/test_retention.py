"""Retention deletes expired rows, but never rows of live rollouts or evidence of decisions, and
reports the freed space.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.db import DatabaseError, transaction
from django.test import Client

from apps.experiments.ingestion import NOT_KEPT, record_outcomes
from apps.experiments.models import (
    Experiment,
    ExposureRow,
    OutcomeRow,
    RefusedOutcomes,
    UnitCount,
)
from apps.experiments.states import ExperimentState
from apps.lib.clock import database_now
from apps.models.models import AuditEntry
from apps.rollouts.models import (
    BreakerTripRecord,
    Evaluation,
    IngestedBatch,
    Instance,
    ObservedInterval,
    Rollout,
    TelemetryRow,
    TrafficAlarm,
)
from apps.rollouts.states import Phase
from controlplane import env
from controlplane.models import RetentionRun
from controlplane.retention.declared import KINDS
from controlplane.retention.drops import RULES, Rule
from controlplane.retention.run import run_retention
from tests.experiments.factories import NOW_MS, make_draft, make_metric, outcome
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def run_of(name: str) -> RetentionRun:
    return RetentionRun.objects.get(name=name)


def baking(name: str = "digits") -> Rollout:
    with transaction.atomic():
        return make_baking(make_model(name))


def ended(days_ago: int, name: str = "words") -> Rollout:
    rollout = baking(name)
    at = database_now() - days_ago * DAY
    Rollout.objects.filter(pk=rollout.pk).update(
        phase=Phase.SUCCEEDED, started_at=at - DAY, ended_at=at
    )
    return rollout


def evaluate(
    rollout: Rollout, at: datetime, check: str = "errors", intervals: int = 0
) -> Evaluation:
    return Evaluation.objects.create(
        rollout=rollout, step_index=0, check_name=check, verdict="pass", reason="r",
        inputs={"intervals": intervals}, at=at,
    )  # fmt: skip


def freeze(rollout: Rollout, count: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ObservedInterval.objects.bulk_create(
        ObservedInterval(
            rollout=rollout, ordinal=n, step_index=0, started_at=start + n * timedelta(seconds=10)
        )
        for n in range(count)
    )


# --- windows -------------------------------------------------------------------------------------


def test_windows_are_deleted_after_their_retention() -> None:
    now = database_now()
    make_model()
    send("stable", 5, at=now)
    run_retention(now + 12 * DAY)
    assert TelemetryRow.objects.count() == 1
    run_retention(now + 17 * DAY)
    assert not TelemetryRow.objects.exists()
    assert run_of("windows").rows_total >= 1


def test_windows_of_a_live_rollout_are_kept() -> None:
    rollout = baking()
    send("stable", 5, at=database_now())
    run_retention(database_now() + 100 * DAY)
    assert TelemetryRow.objects.count() == 1
    assert run_of("windows").held == f"the rollout of {rollout.target} is live"


def test_zero_keeps_for_ever(settings: Any) -> None:
    settings.RETENTION_DAYS = {kind.name: 0 for kind in KINDS}
    rollout = ended(3_000)
    evaluate(rollout, database_now() - 3_000 * DAY)
    evaluate(rollout, database_now() - 3_000 * DAY)
    send("stable", 5, at=database_now())
    run_retention(database_now() + 3_000 * DAY)
    assert (TelemetryRow.objects.count(), Evaluation.objects.count()) == (1, 2)


# --- decisions and their evidence ----------------------------------------------------------------


def test_the_last_evaluations_of_an_old_rollout_are_kept_with_their_evidence() -> None:
    old, live = ended(200), baking()
    long_ago = database_now() - 201 * DAY
    for rollout in (old, live):
        freeze(rollout, 9)
        for n in (3, 5, 7):
            evaluate(rollout, long_ago, intervals=n)
        evaluate(rollout, long_ago, "latency", intervals=6)
    for _ in range(2):
        run_retention(database_now() + 130 * DAY)
    assert [each.inputs["intervals"] for each in old.evaluations.order_by("id")] == [7, 6]
    assert old.intervals.count() == 7
    assert (live.evaluations.count(), live.intervals.count()) == (4, 9)


def test_a_recently_ended_rollout_keeps_its_log() -> None:
    rollout = ended(10)
    evaluate(rollout, database_now() - 11 * DAY)
    evaluate(rollout, database_now() - 11 * DAY)
    run_retention(database_now() + 40 * DAY)
    assert rollout.evaluations.count() == 2


def test_decisions_are_deleted_after_their_retention(settings: Any) -> None:
    settings.RETENTION_DAYS = {**settings.RETENTION_DAYS, "decisions": 365}
    together = [ended(400, "a"), ended(400, "b")]
    Rollout.objects.update(ended_at=database_now() - 400 * DAY)
    late = ended(300)
    for rollout in (*together, late):
        evaluate(rollout, database_now() - 400 * DAY, intervals=2)
        freeze(rollout, 2)
    run_retention(database_now())
    assert set(Evaluation.objects.values_list("rollout", flat=True)) == {late.pk}
    assert set(ObservedInterval.objects.values_list("rollout", flat=True)) == {late.pk}


# --- experiments ---------------------------------------------------------------------------------


def record(now: datetime, *events: str, **fields: Any) -> None:
    record_outcomes([outcome(event, **fields) for event in events], now)


def received(days_ago: float) -> None:
    at = database_now() - days_ago * DAY
    OutcomeRow.objects.update(received_at=at, occurred_at=at)


def test_outcomes_are_deleted_in_the_order_of_arrival() -> None:
    make_metric()
    now = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    record(now, "a", "b")
    received(500)
    record(now, "c")
    run_retention(database_now())
    assert [row.event_id for row in OutcomeRow.objects.all()] == ["c"]
    assert run_of("outcomes").rows_total == 2
    run_retention(database_now())
    assert run_of("outcomes").rows_total == 2


def test_outcomes_of_a_running_experiment_are_kept() -> None:
    draft = make_draft()
    started = database_now() - 600 * DAY
    Experiment.objects.update(state=ExperimentState.RUNNING, started_at=started, covariate_s=86_400)
    record(datetime.fromtimestamp(NOW_MS / 1_000, UTC), "a")
    received(500)
    run_retention(database_now())
    assert OutcomeRow.objects.exists()
    assert run_of("outcomes").held == f"experiment {draft.name} is in progress"


def test_an_expired_outcome_is_refused(settings: Any) -> None:
    settings.RETENTION_DAYS = {**settings.RETENTION_DAYS, "outcomes": 30}
    make_metric()
    now = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    old_ms = NOW_MS - 31 * 86_400_000
    report = record_outcomes([outcome("a"), outcome("b", occurred_at_ms=old_ms)], now)
    assert [(each.index, each.reason) for each in report.refused] == [(1, NOT_KEPT)]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"state": ExperimentState.RUNNING, "ended_at": None}, 1),
        ({"state": ExperimentState.COMPLETED, "refresh_due_at": datetime.now(UTC)}, 1),
        ({"state": ExperimentState.COMPLETED}, 0),
    ],
)
def test_exposures_are_deleted_after_their_experiment(fields: dict[str, Any], left: int) -> None:
    experiment = make_draft()
    long_ago = database_now() - 200 * DAY
    Experiment.objects.update(**({"ended_at": long_ago, "started_at": long_ago} | fields))
    ExposureRow.objects.create(
        experiment=experiment, unit="u", variant_name="weak", version_number="1", at=long_ago
    )
    run_retention(database_now())
    assert ExposureRow.objects.count() == left


# --- other kinds ---------------------------------------------------------------------------------


def test_other_rows_are_deleted_by_age() -> None:
    long_ago = database_now() - 1_000 * DAY
    model = make_model()
    at = {"first_at": long_ago, "last_at": long_ago}
    where = {"instance": "i", "model_name": "m", "version_number": "1", "generation": 1}
    Instance.objects.create(name="i", boot="b", reported_at=long_ago)
    BreakerTripRecord.objects.create(boot="b", count=1, **where, **at)
    TrafficAlarm.objects.create(kind="leak", reason="t", **where, **at)
    RefusedOutcomes.objects.create(metric_name="m", reason="r", last_at=long_ago)
    UnitCount.objects.create(model=model, hour=long_ago, smallest=[])
    Session.objects.create(session_key="k", session_data="", expire_date=long_ago)
    AuditEntry.objects.create(actor="a", action="x", target="t")
    IngestedBatch.objects.create(stream="s", instance="i", boot="b", sequence=1)
    AuditEntry.objects.update(at=long_ago)
    IngestedBatch.objects.update(at=long_ago)
    run_retention(database_now())
    for table in (Instance, BreakerTripRecord, TrafficAlarm, RefusedOutcomes, UnitCount, Session):
        assert not table.objects.exists(), table
    assert not AuditEntry.objects.filter(at=long_ago).exists()
    assert not IngestedBatch.objects.exists()


def test_a_failing_kind_does_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise DatabaseError("no such thing")

    monkeypatch.setitem(RULES, "windows", Rule(fail, ()))
    Session.objects.create(session_key="k", session_data="", expire_date=database_now() - 9 * DAY)
    run_retention(database_now())
    assert not Session.objects.exists()
    assert run_of("windows").error == "no such thing"


def test_a_run_without_time_continues_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = [ended(300 + n, f"m{n}") for n in range(4)]
    for rollout in rollouts:
        freeze(rollout, 1)
    for left in (3, 2, 1, 0):
        run_retention(database_now(), within_s=0.0)
        assert ObservedInterval.objects.count() == left
        assert run_of("intervals").is_behind
    run_retention(database_now(), within_s=0.0)
    assert not run_of("intervals").is_behind


# --- reporting -----------------------------------------------------------------------------------


def test_pages_and_api_report_deletions(admin_client: Client, settings: Any) -> None:
    settings.RETENTION_DAYS = {**settings.RETENTION_DAYS, "windows": 1}
    Session.objects.create(session_key="k", session_data="", expire_date=database_now() - 9 * DAY)
    rollout = baking()
    run_retention(database_now() + 3 * DAY)
    page = admin_client.get("/storage/").content.decode()
    assert f"the rollout of {rollout.target} is live" in page
    assert "1 rows" in page
    rows = {row["name"]: row for row in admin_client.get("/api/v1/retention/").json()}
    assert rows["sessions"]["rows_freed_total"] == 1
    assert rows["sessions"]["variable"] == "INTERLOCK_KEEP_SESSIONS_DAYS"
    summary = admin_client.get("/healthz/loops").json()["retention"]
    assert (summary["rows_freed"], summary["failed"]) == (1, [])


def test_the_task_creates_a_row_for_every_kind() -> None:
    from controlplane.tasks import retention_task

    retention_task()
    assert set(RetentionRun.objects.values_list("name", flat=True)) == set(RULES)
    assert {kind.name for kind in KINDS} == set(RULES)


def test_an_invalid_setting_names_the_valid_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_KEEP_SKETCHES_DAYS", "3")
    with pytest.raises(env.SettingError, match="0 \\(for ever\\) or at least 8"):
        env.days("INTERLOCK_KEEP_SKETCHES_DAYS", 35, at_least=8)
    monkeypatch.setenv("INTERLOCK_KEEP_SKETCHES_DAYS", "0")
    assert env.days("INTERLOCK_KEEP_SKETCHES_DAYS", 35, at_least=8) == 0
