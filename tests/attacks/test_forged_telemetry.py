"""Forged telemetry promotes nothing: only messages signed with an instance's token count.

The attack: thirty XADDs, in the name of an instance that never reported, made a version stable that
had not had one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis

from apps.experiments.backlog import DEAD
from apps.identity.models import InstanceToken, Refusal
from apps.identity.tokens import revoke_token
from apps.lib.clock import database_now
from apps.rollouts.models import Rollout, TelemetryRow
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from contract.message_signatures import SEAL_FIELD
from contract.messages import (
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    STREAMS,
    Outcome,
    TelemetryWindow,
    UnitMeasurement,
    encode_batch,
)
from controlplane.ingest import REFUSED, Ingester, connect
from controlplane.retention.declared import BY_NAME
from controlplane.signature_checks import SEALED_WITHIN
from tests.identity.senders import Sender, issue, now_ms
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db

XADDS = 30
INTERVAL_MS = 10_000


@pytest.fixture
def client() -> Iterator[redis.Redis[bytes]]:
    with connect() as client:
        client.delete(*STREAMS, DEAD, REFUSED)
        yield client
        client.delete(*STREAMS, DEAD, REFUSED)


@pytest.fixture(autouse=True)
def own_tokens(settings: Any) -> Any:
    settings.OWN_TOKENS_REQUIRED = True
    return settings


@pytest.fixture
def rollout() -> Rollout:
    """A canary that has baked for minutes without a request, at its only step."""
    step = StepDocument(weight_bp=5_000, bake_s=0, checks=("error-rate", "sample-ratio"))
    save_plan(document=PlanDocument(name="one", steps=(step,)), is_default=True, actor=ANNA)
    # The instance that is live and idle, and has used its own token.
    make_instance("edge", applied_generation=10**6)
    row = make_baking(make_model())
    began = database_now() - timedelta(seconds=XADDS * INTERVAL_MS / 1_000 + 12)
    Rollout.objects.filter(pk=row.pk).update(step_started_at=began)
    row.refresh_from_db()
    return row


def window(rollout: Rollout, variant: str, started_at_ms: int) -> TelemetryWindow:
    units = 2_000
    version = "2" if variant == "canary" else "1"
    return TelemetryWindow(
        model="digits",
        version=version,
        variant=variant,
        generation=rollout.generation,
        split=str(rollout.pk),
        started_at_ms=started_at_ms,
        ended_at_ms=started_at_ms + 1_000,
        interval_started_at_ms=started_at_ms,
        requests=units,
        units=units,
        assigned=units,
        assigned_requests=units,
        latency={100: units},
    )


def forge(sender: Sender, rollout: Rollout) -> None:
    """Report thirty times that all is well."""
    assert rollout.step_started_at is not None
    began = int(rollout.step_started_at.timestamp() * 1_000) // INTERVAL_MS * INTERVAL_MS
    for turn in range(1, XADDS + 1):
        at_ms = began + turn * INTERVAL_MS
        both = (window(rollout, "canary", at_ms), window(rollout, "stable", at_ms))
        sender.send(sender.batch(windows=both))


def take_in(client: redis.Redis[bytes]) -> Ingester:
    ingester = Ingester(client, "first", block_ms=1)
    # The first turn looks for entries that were left behind.
    for _ in range(2):
        ingester.turn()
    return ingester


def decide(rollout: Rollout) -> Rollout:
    for _ in range(4):
        Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
        tick_rollouts()
    rollout.refresh_from_db()
    return rollout


def refusals() -> dict[tuple[str, str, str], int]:
    rows = Refusal.objects.all()
    return {(row.instance, row.channel, row.reason): row.count for row in rows}


def test_thirty_forged_windows_promote_nothing(
    client: redis.Redis[bytes], rollout: Rollout, admin_client: Any
) -> None:
    issue("edge")
    forge(Sender(client, None, "ghost"), rollout)
    take_in(client)
    assert not TelemetryRow.objects.exists()
    assert decide(rollout).phase == Phase.BAKING
    assert refusals() == {("", STREAM_TELEMETRY, "unsealed"): XADDS}
    assert client.xlen(REFUSED) == XADDS
    assert client.xlen(STREAM_TELEMETRY) == 0
    page = admin_client.get("/fleet/").content.decode()
    assert "it has no seal" in page
    metrics = admin_client.get("/metrics").content.decode()
    labels = f'channel="{STREAM_TELEMETRY}",instance="",reason="unsealed"'
    assert f"interlock_refused_messages_total{{{labels}}} 30.0" in metrics
    assert admin_client.get("/api/v1/status/").json()["refused_messages"][0]["count"] == XADDS


def test_the_attack_works_without_required_seals(
    client: redis.Redis[bytes], rollout: Rollout, settings: Any
) -> None:
    settings.OWN_TOKENS_REQUIRED = False
    forge(Sender(client, None, "ghost"), rollout)
    take_in(client)
    assert TelemetryRow.objects.count() == 2 * XADDS
    assert decide(rollout).phase in {Phase.PROMOTING, Phase.SUCCEEDED}


def test_messages_sealed_by_the_instance_count(
    client: redis.Redis[bytes], rollout: Rollout
) -> None:
    token = issue("edge")
    for name in ("edge", "edge/0", "edge/7"):
        sender = Sender(client, token, name)
        sender.send(sender.batch(windows=(window(rollout, "canary", now_ms()),)))
    take_in(client)
    assert TelemetryRow.objects.count() == 3
    assert refusals() == {}


def test_other_seals_are_refused(client: redis.Redis[bytes], rollout: Rollout) -> None:
    """A guessed token, another instance's token, an unknown name, and bytes that are no seal."""
    issue("edge")
    other = issue("other")
    windows = (window(rollout, "canary", now_ms()),)
    for token, name in (("guess", "edge"), (other, "edge"), ("guess", "ghost")):
        sender = Sender(client, token, name)
        sender.send(sender.batch(windows=windows))
    client.xadd(STREAM_TELEMETRY, {b"batch": b"x", SEAL_FIELD: b"\xff" * 40})
    # The seal is its own, and the batch names another instance.
    liar = Sender(client, other, "other")
    liar.send(Sender(client, None, "edge").batch(windows=windows))
    take_in(client)
    assert not TelemetryRow.objects.exists()
    assert refusals() == {
        ("edge", STREAM_TELEMETRY, "forged"): 2,
        ("", STREAM_TELEMETRY, "unknown"): 1,
        ("", STREAM_TELEMETRY, "forged"): 1,
        ("other", STREAM_TELEMETRY, "foreign"): 1,
    }


def test_a_seal_does_not_hold_for_other_bytes_or_another_stream(
    client: redis.Redis[bytes], rollout: Rollout
) -> None:
    sender = Sender(client, issue("edge"))
    good = sender.send(sender.batch(windows=(window(rollout, "canary", now_ms()),)))
    changed = sender.batch(windows=(window(rollout, "stable", now_ms()),))
    client.xadd(STREAM_TELEMETRY, {**good, b"batch": encode_batch(changed)})
    client.xadd(STREAM_EXPOSURES, good)  # type: ignore[arg-type]
    take_in(client)
    assert TelemetryRow.objects.count() == 1
    assert refusals() == {
        ("edge", STREAM_TELEMETRY, "forged"): 1,
        ("edge", STREAM_EXPOSURES, "forged"): 1,
    }


def test_counts_are_refused_as_old_before_their_key_is_deleted() -> None:
    assert timedelta(days=BY_NAME["batches"].least_days) > SEALED_WITHIN


def test_a_replay_counts_once_and_later_not_at_all(
    client: redis.Redis[bytes], rollout: Rollout
) -> None:
    sender = Sender(client, issue("edge"))
    good = sender.send(sender.batch(windows=(window(rollout, "canary", now_ms()),)))
    client.xadd(STREAM_TELEMETRY, good)  # type: ignore[arg-type]
    old_ms = now_ms() - int(SEALED_WITHIN.total_seconds() + 60) * 1_000
    sender.send(sender.batch(windows=(window(rollout, "canary", now_ms()),)), at_ms=old_ms)
    measured = UnitMeasurement(experiment="e", unit="u", variant="a", requests=1)
    sender.send(sender.batch(measurements=(measured,)), STREAM_EXPOSURES, at_ms=old_ms)
    take_in(client)
    assert TelemetryRow.objects.count() == 1
    assert refusals() == {
        ("edge", STREAM_TELEMETRY, "old"): 1,
        ("edge", STREAM_EXPOSURES, "old"): 1,
    }


@pytest.mark.parametrize("stream", STREAMS)
def test_every_message_through_redis_needs_a_seal(client: redis.Redis[bytes], stream: str) -> None:
    outcome = Outcome(event_id="e", unit_id="u", metric="m", value=1.0, occurred_at_ms=now_ms())
    lists = {STREAM_OUTCOMES: {"outcomes": (outcome,)}}
    sender = Sender(client, None)
    sender.send(sender.batch(**lists.get(stream, {})), stream)
    take_in(client)
    assert refusals() == {("", stream, "unsealed"): 1}


def test_a_revoked_token_is_refused_within_seconds(
    client: redis.Redis[bytes], rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.signature_checks.READ_EVERY_S", 0.0)
    sender = Sender(client, issue("edge"))
    sender.send(sender.batch(windows=(window(rollout, "canary", now_ms()),)))
    ingester = take_in(client)
    revoke_token(token=InstanceToken.objects.get(), actor=ANNA, now=database_now())
    sender.send(sender.batch(windows=(window(rollout, "canary", now_ms()),)))
    ingester.turn()
    assert TelemetryRow.objects.count() == 1
    assert refusals() == {("edge", STREAM_TELEMETRY, "revoked"): 1}
