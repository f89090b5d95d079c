"""The ingestion backlog is counted, dated and shown; a final result waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from apps.experiments.backlog import DEAD, GROUP, is_ingested, read_backlog, read_result_backlog
from apps.experiments.models import Experiment
from apps.experiments.result_tables.notices import backlog_notices
from apps.experiments.results import compute_result, finalise_result
from apps.experiments.services import stop_experiment
from contract.messages import FIELD, STREAM_EXPOSURES, STREAM_OUTCOMES, STREAMS
from controlplane.models import ApiToken
from tests.experiments.factories import ANNA, NOW, make_running

pytestmark = pytest.mark.django_db


@pytest.fixture
def streams() -> Iterator[redis.Redis[bytes]]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.delete(*STREAMS, DEAD)
        yield client
        client.delete(*STREAMS, DEAD)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point Redis at a closed port."""
    monkeypatch.setattr(settings, "REDIS_URL", "redis://127.0.0.1:1/0")


def put(client: redis.Redis[bytes], stream: str, age_s: float) -> None:
    seconds, _ = client.time()
    client.xadd(stream, {FIELD: b""}, id=f"{round((seconds - age_s) * 1_000)}-0")


def test_each_stream_has_length_pending_entries_and_age(streams: redis.Redis[bytes]) -> None:
    put(streams, STREAM_OUTCOMES, age_s=90)
    put(streams, STREAM_OUTCOMES, age_s=10)
    streams.xgroup_create(STREAM_OUTCOMES, GROUP, id="0")
    streams.xreadgroup(GROUP, "reader", {STREAM_OUTCOMES: ">"}, count=1)
    put(streams, DEAD, age_s=1_000)

    backlog = read_backlog()

    waiting = backlog.streams[STREAM_OUTCOMES]
    assert (waiting.entries, waiting.pending, backlog.dead) == (2, 1, 1)
    assert 89 < waiting.oldest_s < 95
    empty = backlog.streams[STREAM_EXPOSURES]
    assert (empty.entries, empty.pending, empty.oldest_s) == (0, 0, 0.0)


def scraped(client: Client) -> str:
    """Return what Prometheus reads with an API token."""
    user = User.objects.create_user("prometheus")
    _, secret = ApiToken.issue(user_id=user.pk, name="scrape")
    return client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).content.decode()


def test_prometheus_reads_the_backlog_with_a_token(
    streams: redis.Redis[bytes], client: Client
) -> None:
    put(streams, STREAM_EXPOSURES, age_s=30)
    assert client.get("/metrics").status_code == 401

    page = scraped(client)

    assert 'interlock_stream_entries{stream="interlock:exposures"} 1.0' in page
    assert 'interlock_stream_oldest_seconds{stream="interlock:exposures"} 3' in page
    assert "interlock_dead_entries 0.0" in page


@pytest.mark.usefixtures("away")
def test_without_redis_metrics_say_so_and_results_have_no_backlog(client: Client) -> None:
    assert "interlock_streams_readable 0.0" in scraped(client)
    assert read_result_backlog() is None


def test_a_result_holds_the_backlog(streams: redis.Redis[bytes], client: Client) -> None:
    experiment = make_running()
    put(streams, STREAM_OUTCOMES, age_s=90)
    result = compute_result(experiment, NOW).result
    Experiment.objects.filter(pk=experiment.pk).update(result=result)
    client.force_login(User.objects.create_superuser("root"))

    pages = [client.get("/experiments/"), client.get(f"/experiments/{experiment.name}/")]
    answer = client.get(f"/api/v1/experiments/{experiment.name}/results/").json()

    for page in pages:
        assert "1 batch waits for ingestion" in page.content.decode()
    assert answer["result"]["backlog"]["entries"] == 1


def test_the_final_result_waits_for_batches_sent_before_the_end(
    streams: redis.Redis[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_running()
    now = datetime.now(UTC)
    stop_experiment(experiment=experiment, actor=ANNA, now=now - timedelta(seconds=30))
    experiment.refresh_from_db()
    put(streams, STREAM_OUTCOMES, age_s=60)

    assert not finalise_result(experiment, now)
    with monkeypatch.context() as patch:
        patch.setattr(settings, "REDIS_URL", "redis://127.0.0.1:1/0")
        assert not finalise_result(experiment, now)

    streams.delete(STREAM_OUTCOMES)
    put(streams, STREAM_OUTCOMES, age_s=1)
    assert finalise_result(experiment, now)


def test_the_final_result_does_not_wait_for_later_batches(streams: redis.Redis[bytes]) -> None:
    now = datetime.now(UTC)
    put(streams, STREAM_OUTCOMES, age_s=20)

    assert is_ingested(now - timedelta(seconds=40), now)
    assert not is_ingested(now - timedelta(seconds=5), now)


@pytest.mark.parametrize(
    ("waits", "tones"),
    [
        ({"entries": 0, "oldest_s": 0.0, "dead": 0}, []),
        ({"entries": 9, "oldest_s": 1.0, "dead": 0}, []),
        ({"entries": 9, "oldest_s": 8.0, "dead": 0}, ["busy"]),
        ({"entries": 9, "oldest_s": 80.0, "dead": 2}, ["warn", "warn"]),
        (None, ["warn"]),
    ],
)
def test_a_notice_shows_how_far_results_are_behind(waits: object, tones: list[str]) -> None:
    assert [notice.tone for notice in backlog_notices({"backlog": waits})] == tones
    assert backlog_notices({}) == []
