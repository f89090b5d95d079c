"""Generations only grow, and only when the table says something new; who is behind is named."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
import redis

from apps.lib.clock import database_now
from apps.models.models import ApiKey, RegisteredModel, Tenant
from apps.rollouts.fleet_status import pins_on, unacked
from apps.rollouts.models import BreakerTripRecord, Instance, PublishedTable
from apps.rollouts.publication import publish_table, record_report
from contract.messages import BreakerTrip, InstanceReport
from contract.routing import CHANNEL, decode
from tests.rollouts.factories import ANNA, make_instance, make_model

pytestmark = pytest.mark.django_db


def publish() -> int:
    return publish_table(reason="test", actor=ANNA, now=database_now())


def test_the_same_state_keeps_its_generation_and_another_gets_the_next() -> None:
    make_model()
    first = publish()
    assert publish() == first
    RegisteredModel.objects.update(timeout_ms=77)
    assert publish() == first + 1
    tables = [decode(bytes(row.document)) for row in PublishedTable.objects.all()]
    assert [table.models["digits"].timeout_ms for table in tables] == [77, 1_000]


def test_a_state_that_comes_back_is_a_new_generation() -> None:
    make_model()
    published = []
    for timeout_ms in (1, 2, 1):
        RegisteredModel.objects.update(timeout_ms=timeout_ms)
        published.append(publish())
    assert published == [1, 2, 3]


@pytest.mark.django_db(transaction=True)
def test_publishing_outside_a_transaction_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match="must run in the transaction"):
        publish()


def test_data_planes_are_woken_after_the_commit_and_redis_may_be_away(
    django_capture_on_commit_callbacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str]] = []

    def publish_message(self: Any, channel: str, message: str) -> None:
        sent.append((channel, message))
        raise redis.ConnectionError("away")

    monkeypatch.setattr(redis.Redis, "publish", publish_message)
    make_model()
    with django_capture_on_commit_callbacks(execute=True):
        generation = publish()
        assert not sent
    assert sent == [(CHANNEL, str(generation))]


def test_who_is_behind_is_named_with_the_reason() -> None:
    make_instance("late", applied_generation=3)
    make_instance("nay", applied_generation=3, refused_generation=4, refusal="no version 2")
    make_instance("fine", applied_generation=4)
    make_instance("gone", applied_generation=0, reported_at=database_now() - timedelta(hours=1))
    assert unacked(4, database_now()) == [
        ("late", "still serves generation 3"),
        ("nay", "refused generation 4: no version 2"),
    ]


def test_a_report_is_stored_by_our_clock_and_its_trips_once() -> None:
    now = database_now()
    for seconds, count in ((0, 1), (10, 2)):
        trip = BreakerTrip(
            model="digits", version="2", generation=4, count=count, last_at_ms=1_000, reason="x"
        )
        report = InstanceReport(
            instance="i", boot="b", at_ms=1_500, applied_generation=4, trips=(trip,)
        )
        record_report(report, now=now + timedelta(seconds=seconds))
    last = now + timedelta(seconds=10)
    assert Instance.objects.get().reported_at == last
    record = BreakerTripRecord.objects.get()
    assert (record.count, record.first_at) == (2, now)
    assert record.last_at == last - timedelta(milliseconds=500)


def test_an_ack_clears_an_earlier_refusal() -> None:
    make_instance("i", applied_generation=3, refused_generation=4, refusal="no version 2")
    report = InstanceReport(instance="i", boot="b", at_ms=5, applied_generation=4)
    instance = record_report(report, now=database_now())
    assert (instance.refused_generation, instance.refusal) == (None, "")


def test_what_an_instance_has_pinned_is_stored_and_cleared() -> None:
    report = InstanceReport(
        instance="i", boot="b", at_ms=5, applied_generation=4, pinned=("digits",)
    )
    now = database_now()
    record_report(report, now=now)
    assert pins_on("digits", now) == ["instance i has digits pinned to stable by its operator"]
    assert pins_on("fraud", now) == []
    record_report(msgspec.structs.replace(report, pinned=()), now=now)
    assert pins_on("digits", now) == []


def test_the_queries_of_a_publication_do_not_grow_with_models_and_tenants(
    django_assert_max_num_queries: Any,
) -> None:
    for number in range(6):
        make_model(f"m{number}")
        tenant = Tenant.objects.create(name=f"t{number}")
        ApiKey.objects.create(tenant=tenant, digest=f"d{number}", created_at=database_now())
    with django_assert_max_num_queries(13):
        publish()
