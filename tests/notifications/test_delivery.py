"""Delivery over real connections: arrival, retries, giving up."""

from __future__ import annotations

import threading
from time import monotonic, sleep
from typing import Any

import pytest
from django.db import connections, transaction

from apps.lib.clock import database_now
from apps.notifications.delivery import deliver_due, run_lane
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.outbox import BACK_OFF_S, enqueue
from apps.notifications.services import change_target, rotate_secret
from tests.notifications.receivers import Endpoint, listening, verified
from tests.notifications.rows import ADA, enqueue_event, make_model, make_target, pass_time, reread


def deliver_once() -> None:
    try:
        deliver_due()
    finally:
        connections.close_all()


pytestmark = pytest.mark.django_db(transaction=True)


def test_a_webhook_arrives_signed_once(endpoint: Endpoint, settings: Any) -> None:
    settings.PUBLIC_URL = "https://interlock.example"
    target = make_target(endpoint.url)
    message = enqueue_event(rollout="r-1", reason="evidence is good", weight_bp=500)

    assert (deliver_due(), deliver_due()) == (1, 0)

    (received,) = endpoint.received
    document = verified(received, target.secret)
    assert (received.id, document["type"]) == (str(message.pk), "rollout.baking")
    assert document["timestamp"].endswith("Z")
    assert document["data"]["model"] == "digits"
    assert document["data"]["url"] == "https://interlock.example/rollouts/r-1/"
    assert reread(message).state == "delivered"


def test_after_a_rotation_both_secrets_verify(endpoint: Endpoint) -> None:
    old = make_target(endpoint.url)
    new = rotate_secret(target=old, actor=ADA, now=database_now())
    enqueue_event()
    deliver_due()

    for secret in (old.secret, new.secret):
        assert verified(endpoint.received[0], secret)
    with pytest.raises(AssertionError):
        verified(endpoint.received[0], "whsec_" + "A" * 44)


def test_slack_gets_one_line_with_a_link_and_no_markup(endpoint: Endpoint, settings: Any) -> None:
    settings.PUBLIC_URL = "https://interlock.example"
    make_target(endpoint.url, kind="slack")
    enqueue_event(
        "rollout.rolled_back", target="digits:3", rollout="r-1", reason="errors 9 % > <limit>"
    )
    deliver_due()

    assert endpoint.received[0].document == {
        "text": "digits:3: rollout rolled back (errors 9 % &gt; &lt;limit&gt;)"
        " <https://interlock.example/rollouts/r-1/|Open>"
    }
    assert "webhook-signature" not in endpoint.received[0].headers


def test_a_refused_message_is_retried_under_its_id_and_then_given_up(
    endpoint: Endpoint,
) -> None:
    endpoint.status, endpoint.text = 500, b"no such channel"
    make_target(endpoint.url)
    message = enqueue_event()
    for wait_s in BACK_OFF_S:
        deliver_due()
        current = reread(message)
        assert current.state == "retrying"
        assert (
            wait_s * 0.9 < (current.next_attempt_at - database_now()).total_seconds() < wait_s * 1.2
        )
        pass_time(hours=14)
    deliver_due()

    assert reread(message).state == "gave_up"
    assert reread(message).last_error == "answered 500: no such channel"
    assert endpoint.ids() == [str(message.pk)] * (len(BACK_OFF_S) + 1)


def test_a_refused_message_does_not_delay_others(endpoint: Endpoint) -> None:
    endpoint.before = lambda received: setattr(
        endpoint, "status", 400 if "leak" in received.document["type"] else 200
    )
    make_target(endpoint.url)
    refused, taken = enqueue_event("leak.detected"), enqueue_event()
    deliver_due()

    assert (reread(refused).state, reread(taken).state) == ("retrying", "delivered")


def test_an_endpoint_gets_all_messages_after_an_outage() -> None:
    with listening() as first:
        port = first.port
    make_target(f"http://127.0.0.1:{port}/hook")
    messages = [enqueue_event() for _ in range(3)]
    deliver_due()
    # One attempt delayed all three.
    assert sorted(reread(m).attempts for m in messages) == [0, 0, 1]
    assert "Connection refused" in reread(messages[0]).last_error

    with listening(port) as endpoint:
        assert deliver_due() == 0
        pass_time(seconds=7)
        deliver_due()
        assert endpoint.ids() == [str(m.pk) for m in messages]


def test_410_deactivates_the_target_and_gives_up_open_messages(endpoint: Endpoint) -> None:
    endpoint.status = 410
    target = make_target(endpoint.url)
    first, second = enqueue_event(), enqueue_event()
    deliver_due()

    target.refresh_from_db()
    assert (target.is_active, target.inactive_reason) == (False, "the endpoint answered 410 Gone")
    assert {reread(first).state, reread(second).state} == {"gave_up"}
    assert len(endpoint.received) == 1


def test_retry_after_is_respected(endpoint: Endpoint) -> None:
    endpoint.status, endpoint.extra = 429, {"Retry-After": "900"}
    make_target(endpoint.url)
    message = enqueue_event()
    deliver_due()

    assert 890 < (reread(message).next_attempt_at - database_now()).total_seconds() <= 900


def test_a_redirect_is_not_followed(endpoint: Endpoint) -> None:
    with listening() as elsewhere:
        endpoint.status, endpoint.extra = 302, {"Location": elsewhere.url}
        make_target(endpoint.url)
        message = enqueue_event()
        deliver_due()

    assert elsewhere.received == []
    assert "redirects are not followed" in reread(message).last_error


def test_a_changed_address_gets_the_open_messages(endpoint: Endpoint) -> None:
    target = make_target("http://127.0.0.1:9/hook")
    message = enqueue_event()
    deliver_due()
    change_target(target=target, address=endpoint.url, actor=ADA, now=database_now())
    pass_time(seconds=7)
    deliver_due()

    assert reread(message).state == "delivered"


def test_two_workers_at_once_send_each_message_once(endpoint: Endpoint) -> None:
    target = make_target(endpoint.url)
    messages = [enqueue_event() for _ in range(20)]
    endpoint.before = lambda received: sleep(0.01)
    until = monotonic() + 20
    workers = [threading.Thread(target=run_lane, args=(target.pk, until)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sorted(endpoint.ids()) == sorted(str(m.pk) for m in messages)


def test_a_hanging_endpoint_blocks_no_row_no_run_and_no_other_target(
    endpoint: Endpoint,
) -> None:
    release = threading.Event()
    endpoint.before = lambda received: [release.wait(4)].clear()
    with listening() as other:
        make_target(endpoint.url)
        slow = enqueue_event()
        make_target(other.url, name="other", events=["leak.detected"])
        NotificationTarget.objects.filter(name="ops").update(events=["rollout.baking"])
        quick = enqueue_event("leak.detected")
        run = threading.Thread(target=deliver_once)
        run.start()
        while not (endpoint.received and other.received):
            sleep(0.01)
        # Rows are not locked, and a second run returns at once: its worker is free for rollouts.
        with transaction.atomic():
            assert OutboxMessage.objects.select_for_update(nowait=True).get(pk=slow.pk)
        assert deliver_due() == 0
        release.set()
        run.join()
    assert (reread(slow).state, reread(quick).state) == ("delivered", "delivered")


def test_a_message_that_cannot_be_sent_fails_alone_with_the_reason(endpoint: Endpoint) -> None:
    broken, good = make_target(endpoint.url, name="broken"), make_target(endpoint.url, name="good")
    NotificationTarget.objects.filter(pk=broken.pk).update(secret="whsec_a")
    with transaction.atomic():
        enqueue(event="rollout.baking", model=make_model(), payload={}, now=database_now())
    deliver_due()

    failed = OutboxMessage.objects.get(target=broken)
    assert "it cannot be sent: Error: " in failed.last_error
    assert failed.next_attempt_at > database_now()
    assert OutboxMessage.objects.get(target=good).state == "delivered"
