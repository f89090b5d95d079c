"""A client of Redis without its password can forge no task, and empty no stream.

The attack: Redis of `./run up` required no password.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.messages import STREAM_TELEMETRY
from embedded.stack import Stack, running

# Repeated attempts are refused too.
ONCE = Retry(NoBackoff(), 0)
WAYS: dict[str, Callable[[Any], Any]] = {
    "telemetry": lambda client: client.xadd(STREAM_TELEMETRY, {"batch": b""}),
    "a task": lambda client: client.lpush("celery", b"{}"),
    "a flush": lambda client: client.flushall(),
    "a setting": lambda client: client.config_set("requirepass", ""),
    "a copy": lambda client: client.replicaof("127.0.0.1", 1),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("redis"), {"redis"}) as stack:
        yield stack


@pytest.mark.parametrize("password", [None, "guess", ""], ids=["none", "guess", "empty"])
@pytest.mark.parametrize("way", WAYS)
def test_an_unauthenticated_client_is_refused(stack: Stack, way: str, password: str | None) -> None:
    with (
        redis.Redis(port=stack.ports["redis"], password=password, retry=ONCE) as client,
        pytest.raises((redis.AuthenticationError, redis.ResponseError)),
    ):
        WAYS[way](client)


def test_a_client_with_the_password_is_served(stack: Stack) -> None:
    with redis.Redis.from_url(stack.redis_url) as client:
        assert client.ping()
        assert client.xlen(STREAM_TELEMETRY) == 0
