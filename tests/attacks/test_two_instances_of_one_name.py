"""A second instance of a name is refused and shown; its messages wait on its disk.

The attack, or the mistake: another data plane under the name of a live one. Its acks spoke for the
first one, and its telemetry counted as the first one's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from django.conf import settings as configured
from django.test import Client

from apps.identity.models import InstanceHome, InstanceToken, Refusal
from apps.identity.tokens import revoke_token, rotate_token
from apps.lib.clock import database_now
from apps.rollouts.models import Instance
from apps.rollouts.publication import publish_table
from contract.message_signatures import HOME_HEADER, INSTANCE_HEADER, SEAL_FIELD
from contract.messages import STREAM_OUTCOMES, STREAMS, InstanceReport, encode_report
from controlplane.ingest import Ingester, connect
from dataplane.config import Config
from dataplane.instance import Instance as DataPlane
from tests.identity.senders import Sender, issue
from tests.rollouts.factories import ANNA, make_model

PULL, REPORT = "/api/dataplane/v1/routing-table", "/api/dataplane/v1/report"
WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def own_tokens(settings: Any) -> None:
    settings.OWN_TOKENS_REQUIRED = True


@pytest.fixture
def table(db: None) -> None:
    make_model()
    publish_table(reason="start", actor=ANNA, now=database_now())


def caller(token: str, name: str = "edge", home: str = "one") -> Client:
    return Client(
        headers={"Authorization": f"Bearer {token}", INSTANCE_HEADER: name, HOME_HEADER: home}
    )


def report(client: Client, name: str = "edge", boot: str = "b", *, stopping: bool = False) -> Any:
    message = InstanceReport(
        instance=name, boot=boot, at_ms=0, applied_generation=1, stopping=stopping
    )
    return client.post(REPORT, encode_report(message), content_type="application/json")


def counted() -> dict[tuple[str, str, str], int]:
    rows = Refusal.objects.all()
    return {(row.instance, row.channel, row.reason): row.count for row in rows}


def age(name: str, seconds: float) -> None:
    then = database_now() - timedelta(seconds=seconds)
    Instance.objects.filter(name=name).update(reported_at=then)


# --- over REST ---------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_second_one_gets_no_table_and_its_reports_are_refused(
    table: None, admin_client: Client
) -> None:
    token = issue("edge")
    first, second = caller(token), caller(token, home="two")
    assert report(first, boot="a").status_code == 204
    answers = [report(second, boot="z"), second.get(PULL)]
    assert [answer.status_code for answer in answers] == [409, 409]
    assert "Another instance named edge is live" in answers[0].json()["error"]["message"]
    assert Instance.objects.get().boot == "a"
    assert (report(first).status_code, first.get(PULL).status_code) == (204, 200)
    assert counted() == {("edge", "report", "second"): 1, ("edge", "routing-table", "second"): 1}
    assert "another instance of that name is live" in admin_client.get("/fleet/").content.decode()


@pytest.mark.django_db
def test_its_telemetry_does_not_count(table: None, client_of_redis: redis.Redis[bytes]) -> None:
    token = issue("edge")
    report(caller(token))
    for home in ("one", "two"):
        sender = Sender(client_of_redis, token, home=home)
        sender.send(sender.batch(), STREAM_OUTCOMES)
    ingester = Ingester(client_of_redis, "first", block_ms=1)
    for _ in range(2):
        ingester.turn()
    assert counted() == {("edge", STREAM_OUTCOMES, "second"): 1}


@pytest.mark.django_db
def test_a_restart_is_no_second_one(table: None) -> None:
    """On the same state directory at once; on another one when the old instance is gone."""
    token = issue("edge")
    report(caller(token), boot="a")
    assert report(caller(token), boot="b").status_code == 204
    moved = caller(token, home="two")
    assert report(moved, boot="c").status_code == 409
    age("edge", configured.INSTANCE_LIVE_S + 1)
    assert report(moved, boot="c").status_code == 204
    assert InstanceHome.objects.get().home == "two"
    report(moved, boot="c", stopping=True)
    assert report(caller(token, home="three"), boot="d").status_code == 204


@pytest.mark.django_db
def test_workers_of_one_instance_are_no_duplicates(table: None) -> None:
    token = issue("edge")
    for slot in range(3):
        name = f"edge/{slot}"
        assert report(caller(token, name), name).status_code == 204


@pytest.mark.django_db
def test_another_number_of_workers_does_not_hide_a_second_instance(table: None) -> None:
    token = issue("edge")
    assert report(caller(token)).status_code == 204
    second = caller(token, "edge/0", home="two")
    assert (report(second, "edge/0").status_code, second.get(PULL).status_code) == (409, 409)
    # On the same state directory it is a restart with more workers.
    assert report(caller(token, "edge/0"), "edge/0").status_code == 204


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("shown", "named"), [("edge", "other"), ("edge", "edge/x"), ("edge", "ed")]
)
def test_a_token_is_valid_for_its_own_instance_only(table: None, shown: str, named: str) -> None:
    token = issue(shown)
    for client in (caller(token, named), caller(token, shown)):
        assert report(client, named).status_code == 403
    assert not Instance.objects.exists()
    assert counted() == {("edge", "report", "foreign"): 2}


@pytest.mark.django_db
def test_tokens_are_rotated_with_an_overlap_and_revoked(table: None) -> None:
    old = issue("edge")
    now = database_now()
    _, new = rotate_token(instance="edge", overlap=timedelta(hours=1), actor=ANNA, now=now)
    assert [report(caller(token)).status_code for token in (old, new)] == [204, 204]
    InstanceToken.objects.exclude(expires_at=None).update(expires_at=now)
    for token in InstanceToken.objects.filter(expires_at=None):
        revoke_token(token=token, actor=ANNA, now=now)
    assert [report(caller(token)).status_code for token in (old, new)] == [401, 401]
    assert counted() == {("edge", "report", "revoked"): 2}


@pytest.mark.django_db
def test_the_shared_token_is_accepted_only_if_own_tokens_are_not_required(
    table: None, settings: Any
) -> None:
    shared = caller(configured.INSTANCE_TOKEN)
    assert (report(shared).status_code, shared.get(PULL).status_code) == (401, 401)
    settings.OWN_TOKENS_REQUIRED = False
    assert (report(shared).status_code, shared.get(PULL).status_code) == (204, 200)
    assert not InstanceHome.objects.get().has_own_token


# --- whole data planes -------------------------------------------------------------------------


@pytest.fixture
def client_of_redis() -> Any:
    with connect() as client:
        client.delete(*STREAMS)
        yield client
        client.delete(*STREAMS)


@asynccontextmanager
async def a_data_plane(
    folder: Path, url: str, token: str
) -> AsyncIterator[tuple[DataPlane, httpx.AsyncClient]]:
    config = Config(
        bind=("127.0.0.1", 0), control_url=url, instance_token=token, instance_name="edge",
        state_dir=folder, redis_url=configured.REDIS_URL, poll_interval_s=0.1,
        report_interval_s=0.1, telemetry_interval_s=0.1, stop_timeout_s=3.0,
    )  # fmt: skip
    instance = DataPlane(config, asyncio.get_running_loop())
    port = await instance.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield instance, client
    await instance.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  The other side is a process of its own.
            await asyncio.sleep(0.02)


async def tell(client: httpx.AsyncClient, event: str) -> None:
    outcome = {
        "event_id": event, "unit_id": "u", "metric": "m", "value": 1.0,
        "occurred_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    answer = await client.post("/outcomes", json=outcome)
    assert answer.status_code == 202, answer.text


@pytest.fixture
def token(transactional_db: None) -> str:
    return issue("edge")


@pytest.mark.django_db(transaction=True)
async def test_the_second_data_plane_keeps_its_messages_until_it_is_accepted(
    live_server: Any, tmp_path: Path, client_of_redis: redis.Redis[bytes], token: str
) -> None:
    async with a_data_plane(tmp_path / "one", live_server.url, token) as (first, at_first):
        await until(lambda: first.standing.obstacle is None)
        await tell(at_first, "1")
        await until(lambda: client_of_redis.xlen(STREAM_OUTCOMES) == 1)
        async with a_data_plane(tmp_path / "two", live_server.url, token) as (second, at_second):
            await until(lambda: "Another instance" in (second.standing.obstacle or ""))
            await tell(at_second, "2")
            await until(lambda: second.publisher.spool_bytes > 0)
            with pytest.raises(Exception, match="kept on disk"):
                await second.publisher.send_spooled()
            assert client_of_redis.xlen(STREAM_OUTCOMES) == 1
    # The first has reported its stop: the second, restarted, takes its place.
    async with a_data_plane(tmp_path / "two", live_server.url, token) as (second, _):
        await until(lambda: client_of_redis.xlen(STREAM_OUTCOMES) == 2)
    for _, fields in client_of_redis.xrange(STREAM_OUTCOMES):
        assert SEAL_FIELD in fields
