"""Redis with TLS, behind Sentinel, demoted, or as a cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from django.db import connection
from kombu.exceptions import OperationalError

from apps.lib import redis_client
from contract.redis_url import NO_CLUSTER
from controlplane import broker, env
from controlplane.loop_health import KEY
from dataplane import redis_client as dataplane_client
from tests.servers.certificates import make_files
from tests.servers.redis import client, free_port, sentinel, server, tls_front, wait_until

broker.use()


def celery_of(url: str) -> Celery:
    app = Celery("tried", broker=env.broker_url(url), fixups=[])
    app.conf.broker_use_ssl = env.broker_tls(url)
    app.conf.broker_transport_options = env.broker_options(url)
    app.conf.broker_connection_timeout = 2.0
    return app


def by_celery(url: str) -> None:
    """Send a task. Raises redis.ConnectionError, like the other writers."""
    with celery_of(url).connection_for_write() as carrier:
        try:
            carrier.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            with carrier.SimpleQueue("tried-by-celery") as queue:
                queue.put({"a": "task"})
        except OperationalError as error:
            raise redis.ConnectionError(str(error)) from error


def by_dataplane(url: str) -> None:
    async def write() -> None:
        own = dataplane_client.connect(url, timeout_s=2.0, tries_again=False)
        try:
            await own.xadd("tried", {"a": "b"})
        finally:
            await own.aclose()

    asyncio.run(write())


@pytest.fixture
def by_control_plane(settings: Any) -> Any:
    def write(url: str) -> None:
        settings.REDIS_URL = url
        with redis_client.connect(timeout_s=2.0) as own:
            own.xadd("tried", {"a": "b"})

    return write


@pytest.fixture(params=["control plane", "data plane", "celery"])
def write(request: pytest.FixtureRequest, by_control_plane: Any) -> Any:
    """Return each of the functions that write to Redis."""
    writers = {"control plane": by_control_plane, "data plane": by_dataplane, "celery": by_celery}
    return writers[request.param]


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("redis")


@pytest.fixture(scope="module")
def tls_port(place: Path) -> Iterator[int]:
    files = make_files(place, "server")
    make_files(place, "other")
    with server(place / "tls") as port, tls_front(files, port) as front:
        yield front


def test_a_server_of_the_right_authority_is_written_to(
    write: Any, tls_port: int, place: Path
) -> None:
    write(f"rediss://localhost:{tls_port}/0?ssl_ca_certs={place}/server.ca")


@pytest.mark.parametrize(
    ("host", "query"),
    [("localhost", "?ssl_ca_certs={}/other.ca"), ("127.0.0.1", "?ssl_ca_certs={}/server.ca"),
     ("localhost", "")],
    ids=["authority", "name", "unknown"],
)  # fmt: skip
def test_a_server_that_cannot_be_verified_is_refused(
    write: Any, tls_port: int, place: Path, host: str, query: str
) -> None:
    with pytest.raises(redis.RedisError, match=r"(?i)certificate"):
        write(f"rediss://{host}:{tls_port}/0{query.format(place)}")


# --- Sentinel ------------------------------------------------------------------------------------


@contextmanager
def two_servers(place: Path) -> Iterator[tuple[int, int]]:
    """Run a primary and a replica that is synchronised."""
    with server(place / "one") as first, server(place / "two") as second:
        with client(second) as replica:
            replica.replicaof("127.0.0.1", first)
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
        yield first, second


def test_after_a_failover_of_sentinel_the_new_primary_is_written_to(
    write: Any, tmp_path: Path
) -> None:
    with two_servers(tmp_path) as (first, second), sentinel(tmp_path / "s", first) as port:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/interlock/0"
        write(url)
        with client(first) as own:
            assert own.dbsize() >= 1
            own.shutdown(nosave=True, now=True)
        wait_until(lambda: write(url) is None)
        with client(second) as own:
            assert own.info("replication")["role"] == "master"


def test_an_open_client_follows_a_failover(tmp_path: Path, settings: Any) -> None:
    with two_servers(tmp_path) as (first, _), sentinel(tmp_path / "s", first) as port:
        settings.REDIS_URL = f"redis+sentinel://127.0.0.1:{port}/interlock"
        with redis_client.connect(timeout_s=2.0) as own, client(port) as guard:
            own.set("before", 1)
            # Sentinel refuses a failover until it knows that the replica is synchronised.
            wait_until(lambda: guard.execute_command("SENTINEL", "FAILOVER", "interlock"))
            wait_until(lambda: own.set("after", 1) and own.info("replication")["role"] == "master")
            wait_until(lambda: own.get("before") == b"1")


# --- a demotion, without Sentinel ----------------------------------------------------------------


def test_a_connection_to_a_demoted_server_is_closed(tmp_path: Path, settings: Any) -> None:
    with server(tmp_path / "one") as port, client(port) as admin:
        settings.REDIS_URL = f"redis://127.0.0.1:{port}/0"
        with redis_client.connect(timeout_s=2.0) as own:
            own.set("a", 1)
            number = own.client_id()
            admin.replicaof("127.0.0.1", 1)
            with pytest.raises(redis.ConnectionError, match="is a replica now"):
                own.set("a", 2)
            admin.replicaof("NO", "ONE")
            own.set("a", 3)
            assert own.client_id() != number


async def test_the_data_plane_closes_it_as_well(tmp_path: Path) -> None:
    with server(tmp_path / "one") as port, client(port) as admin:
        own = dataplane_client.connect(
            f"redis://127.0.0.1:{port}/0", timeout_s=2.0, tries_again=False
        )
        await own.set("a", 1)
        number = await own.client_id()
        admin.replicaof("127.0.0.1", 1)
        with pytest.raises(redis.ConnectionError, match="is a replica now"):
            await own.set("a", 2)
        admin.replicaof("NO", "ONE")
        await own.set("a", 3)
        assert await own.client_id() != number
        await own.aclose()


def environment(url: str) -> dict[str, str]:
    used = connection.settings_dict
    server_of_tests = f"{used['USER']}:{used['PASSWORD']}@{used['HOST']}:{used['PORT']}"
    database = f"postgresql://{server_of_tests}/{used['NAME']}"
    return os.environ | {
        "REDIS_URL": url, "DATABASE_URL": database, "DJANGO_SETTINGS_MODULE": "tests.settings",
    }  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_a_worker_outlives_a_demotion_of_its_broker(tmp_path: Path) -> None:
    with server(tmp_path / "one") as port, client(port) as admin:
        environ = environment(f"redis://127.0.0.1:{port}/0")
        command = [sys.executable, "-m", "controlplane.worker", "--concurrency", "1"]
        process = subprocess.Popen(command, env=environ)
        sender = celery_of(environ["REDIS_URL"])
        mark = f"{KEY}delivery"
        try:
            sender.send_task("notifications.deliver")
            wait_until(lambda: admin.exists(mark), 60)
            admin.replicaof("127.0.0.1", 1)
            # A worker that waits for tasks gets the error now, and retries.
            wait_until(lambda: admin.info("errorstats").get("errorstat_READONLY"), 30)
            admin.replicaof("NO", "ONE")
            admin.delete(mark)
            sender.send_task("notifications.deliver")
            wait_until(lambda: admin.exists(mark), 60)
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


# --- a cluster -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[str]:
    with server(place / "cluster", "--cluster-enabled", "yes") as port:
        yield f"redis://127.0.0.1:{port}/0"


def test_the_control_plane_refuses_a_cluster_with_a_reason(cluster: str, settings: Any) -> None:
    settings.REDIS_URL = cluster
    with pytest.raises(redis_client.ClusterRefused, match="Redis Cluster"):
        redis_client.refuse_cluster()


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "controlplane.worker"],
        ["-m", "controlplane.beat"],
        ["manage.py", "ingest"],
        ["-c", "import controlplane.wsgi"],
    ],
    ids=["worker", "beat", "ingester", "web"],
)
def test_no_process_starts_on_a_cluster(cluster: str, command: list[str]) -> None:
    used = {"REDIS_URL": cluster, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | used, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert NO_CLUSTER in done.stderr


def test_no_worker_of_a_data_plane_starts_on_a_cluster(cluster: str, tmp_path: Path) -> None:
    used = {
        "REDIS_URL": cluster, "INTERLOCK_CONTROL_URL": "http://127.0.0.1:1",
        "INTERLOCK_INSTANCE_TOKEN": "t" * 40, "INTERLOCK_STATE_DIR": str(tmp_path),
        "INTERLOCK_INSTANCE_NAME": "dp", "INTERLOCK_BIND": f"127.0.0.1:{free_port()}",
    }  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dataplane"], env=os.environ | used, stderr=log
        )
        try:
            wait_until(lambda: NO_CLUSTER in (tmp_path / "log").read_text(), 60)
        finally:
            process.terminate()
            process.wait(30)


def test_an_unreachable_redis_does_not_prevent_a_start(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    redis_client.refuse_cluster()
    assert asyncio.run(dataplane_client.cluster_fault(settings.REDIS_URL)) == ""
