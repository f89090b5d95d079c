"""What a poll is answered with: nothing new, what changed, or all of it; and from where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.conf import settings
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import RegisteredModel
from apps.rollouts import table_announcements, table_documents
from apps.rollouts.models import PublishedTable
from apps.rollouts.publication import publish_table
from apps.rollouts.table_announcements import KEPT_MS, KEY, announce, newest_tag
from contract.deltas import MEDIA_TYPE, decode_delta
from tests.rollouts.factories import ANNA, make_model

pytestmark = pytest.mark.django_db
URL = "/api/dataplane/v1/routing-table"


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """Redis and this process know no table before a test, and none after it."""

    client = redis.Redis.from_url(settings.REDIS_URL)

    def forget() -> None:
        client.delete(KEY)
        table_documents._documents.clear()
        table_documents._deltas.clear()

    forget()
    yield
    forget()


def pull(etag: str = "", accept: str = "") -> Any:
    headers = {"Authorization": f"Bearer {settings.INSTANCE_TOKEN}"}
    if etag:
        headers["If-None-Match"] = etag
    if accept:
        headers["Accept"] = accept
    return Client().get(URL, headers=headers)


def publish() -> PublishedTable:
    """Publish a table that differs from all before, and say so as a commit does."""
    stable = RegisteredModel.objects.first()
    assert stable is not None
    stable.timeout_ms += 1
    stable.save()
    generation = publish_table(reason="x", actor=ANNA, now=database_now())
    table = PublishedTable.objects.get(pk=generation)
    announce(generation, table.tag)
    return table


@pytest.fixture
def models() -> None:
    for number in range(6):
        make_model(f"m{number}")


@pytest.mark.usefixtures("models")
def test_a_poll_for_the_newest_table_asks_the_database_nothing(
    django_assert_num_queries: Any,
) -> None:
    table = publish()
    with django_assert_num_queries(0):
        response = pull(f'"{table.tag}"')
    assert (response.status_code, response.headers["ETag"]) == (304, f'"{table.tag}"')


@pytest.mark.usefixtures("models")
def test_a_new_table_is_met_at_once_by_whoever_polls() -> None:
    before = publish()
    assert pull(f'"{before.tag}"').status_code == 304
    after = publish()
    response = pull(f'"{before.tag}"')
    assert (response.status_code, response.content) == (200, bytes(after.document))


@pytest.mark.usefixtures("models")
def test_what_redis_says_lapses_so_that_a_lost_announcement_is_made_up_for() -> None:
    before = publish()
    client = redis.Redis.from_url(settings.REDIS_URL)
    assert newest_tag() == before.tag
    assert 0 < client.pttl(KEY) <= KEPT_MS
    client.delete(KEY)
    assert newest_tag() == before.tag
    assert 0 < client.pttl(KEY) <= KEPT_MS


@pytest.mark.usefixtures("models")
def test_an_older_table_that_is_announced_late_stands_over_no_newer_one() -> None:
    before, after = publish(), publish()
    announce(before.generation, before.tag)
    assert newest_tag() == after.tag


@pytest.mark.usefixtures("models")
def test_what_a_reader_brings_late_stands_over_no_newer_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = publish()
    redis.Redis.from_url(settings.REDIS_URL).delete(KEY)
    read = table_announcements._tag_in_redis

    def read_and_be_overtaken() -> str | None:
        # Between its look into Redis and into PostgreSQL, and what it writes, a table comes.
        monkeypatch.setattr(table_announcements, "_tag_in_redis", read)
        announce(before.generation + 1, f"{before.generation + 1}-new")
        return None

    monkeypatch.setattr(table_announcements, "_tag_in_redis", read_and_be_overtaken)
    newest_tag()
    assert newest_tag() == f"{before.generation + 1}-new"


@pytest.mark.usefixtures("models")
def test_without_redis_the_database_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    table = publish()
    monkeypatch.setattr(settings, "REDIS_URL", "redis://127.0.0.1:1/0")
    assert pull(f'"{table.tag}"').status_code == 304
    assert pull('"0-x"').content == bytes(table.document)


@pytest.mark.usefixtures("models")
def test_who_accepts_it_gets_what_changed(django_assert_num_queries: Any) -> None:
    before, after = publish(), publish()
    response = pull(f'"{before.tag}"', f"{MEDIA_TYPE}, application/json")
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert response.headers["ETag"] == f'"{after.tag}"'
    assert "Accept" in response.headers["Vary"]
    assert list(decode_delta(response.content).changed) == ["m0"]
    # The next one of the fleet costs no document.
    with django_assert_num_queries(1):
        pull(f'"{before.tag}"', MEDIA_TYPE)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("etag", ['"1-of-another-database"', '"999-x"', '"x"', '"²-x"', ""])
def test_who_has_a_table_that_is_not_known_gets_the_whole_one(etag: str) -> None:
    table = publish()
    response = pull(etag, MEDIA_TYPE)
    assert (response.headers["Content-Type"], response.content) == (
        "application/json",
        bytes(table.document),
    )


@pytest.mark.usefixtures("models")
def test_who_does_not_accept_it_gets_the_whole_table() -> None:
    before, after = publish(), publish()
    response = pull(f'"{before.tag}"')
    assert response.headers["Content-Type"] == "application/json"
    assert response.content == bytes(after.document)


def test_a_delta_that_is_nearly_all_of_the_table_is_not_sent() -> None:
    make_model("only")
    before, after = publish(), publish()
    response = pull(f'"{before.tag}"', MEDIA_TYPE)
    assert response.content == bytes(after.document)


def test_before_the_first_table_there_is_none() -> None:
    assert pull().status_code == 404
    assert newest_tag() is None
