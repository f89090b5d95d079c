"""An instance of several processes: workers that die, are replaced, and count together."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton

from dataplane.sockets import bind, claim
from tests.dataplane.groups import ROOT, ROW, a_group, free_port, kill, under_load
from tests.dataplane.worlds import until


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


async def test_every_worker_reports_and_answers(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        assert {r.instance for r in group.control.reports} == {"dp/0", "dp/1"}
        for _ in range(10):
            assert (await group.predict()).status_code == 200
        assert len(group.workers()) == 2


async def test_a_single_worker_has_the_name_of_its_instance(valkey, tmp_path):
    async with a_group(valkey, tmp_path, workers=1) as group:
        assert {r.instance for r in group.control.reports} == {"dp"}


async def test_a_killed_worker_fails_only_its_own_requests_and_is_restarted(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        victim = group.workers()[1]
        async with under_load(group) as load:
            kill(victim)
            await until(lambda: is_gone(victim))
            await until(lambda: len(group.workers()) == 2, 10)
            before = load.answers
            await until(lambda: load.answers > before + 100, 10)
        # The killed worker had at most one request of each client.
        assert len(load.failures) <= 6, load.failures
        assert await group.metric("interlock_worker_restarts_total") == 1


async def test_siblings_serve_the_socket_of_a_worker_that_is_down(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        kill(group.workers()[0])
        answers = await asyncio.gather(*(group.predict(str(n)) for n in range(30)))
        # Connections in the dead worker's socket are answered before its successor is ready.
        assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_rolling_restart_under_load_fails_no_request(valkey, tmp_path, workers):
    async with a_group(valkey, tmp_path, workers=workers) as group:
        old = group.workers()
        async with under_load(group) as load:
            group.process.send_signal(signal.SIGHUP)
            await until(lambda: all(map(is_gone, old)), 30)
            await until(lambda: load.answers > 100)
        assert load.failures == []
        assert len(group.workers()) == workers


async def test_a_new_worker_that_does_not_start_leaves_the_old_one(valkey, tmp_path):
    async with a_group(valkey, tmp_path, workers=1) as group:
        old = group.workers()
        group.process.send_signal(signal.SIGHUP)
        await until(lambda: len(group.workers()) == 2)
        kill(group.workers()[1])
        await until(lambda: group.workers() == old)
        assert (await group.predict()).status_code == 200


async def test_workers_stop_without_a_new_parent(valkey, tmp_path):
    async with a_group(valkey, tmp_path, INTERLOCK_ORPHAN_S="1") as group:
        workers = group.workers()
        kill(group.process.pid)
        await group.process.wait()
        await until(lambda: all(map(is_gone, workers)), 20)
        assert (await group.predict()).status_code == 599


async def test_a_killed_parent_fails_no_request(valkey, tmp_path):
    """Its workers serve on, and those of the next parent take over."""
    async with a_group(valkey, tmp_path) as group:
        workers = group.workers()
        async with under_load(group) as load:
            kill(group.process.pid)
            await group.process.wait()
            before = load.answers
            await until(lambda: load.answers > before + 50, 10)
            assert not any(map(is_gone, workers))
            await group.start()
            await until(lambda: all(map(is_gone, workers)), 60)
            after = load.answers
            await until(lambda: load.answers > after + 50, 10)
        assert load.failures == []
        assert len(group.workers()) == 2


async def test_a_sibling_that_died_with_the_parent_leaves_no_queue_unserved(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        first, second = group.workers()
        kill(group.process.pid)
        kill(first)
        await group.process.wait()
        answers = await asyncio.gather(*(group.predict(str(n)) for n in range(30)))
        assert {answer.status_code for answer in answers} == {200}
        await group.start()
        await until(lambda: is_gone(second), 60)


async def test_another_number_of_workers_takes_the_port_from_orphans(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        kill(group.process.pid)
        await group.process.wait()
        group.environment["INTERLOCK_WORKERS"] = "1"
        await group.start()
        await until(lambda: len(group.workers()) == 1, 60)
        await group.ready()
        assert (await group.predict()).status_code == 200
        assert len(group.workers()) == 1


async def test_a_port_without_workers_refuses_connections(valkey, tmp_path):
    """A worker that cannot come back must not keep clients waiting."""
    async with a_group(valkey, tmp_path, workers=1) as group:
        (worker,) = group.workers()
        # Processes that start from now on are stopped before they can serve.
        kill(worker)
        await until(lambda: group.workers() not in ([], [worker]), 10)
        (successor,) = group.workers()
        os.kill(successor, signal.SIGSTOP)
        await until(lambda: refuses(group.port), 10)
        os.kill(successor, signal.SIGCONT)
        await group.ready()
        answers = [await group.predict() for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}


def refuses(port):
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


async def test_a_stop_ends_every_process(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        workers = group.workers()
        await group.stop()
        assert all(map(is_gone, workers))
        assert group.control.reports[-1].stopping


async def test_metrics_include_all_workers_and_never_go_backwards(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        for n in range(20):
            await group.predict(str(n))
        assert await group.metric("model_predictions_total{") == 20
        kill(group.workers()[0])
        await until(lambda: len(group.workers()) == 1)
        assert await group.metric("model_predictions_total{") == 20
        await group.ready()
        await group.predict()
        assert await group.metric("model_predictions_total{") == 21
        assert await group.metric("interlock_table_generation") == 7


async def test_the_counts_of_a_replaced_worker_stay(valkey, tmp_path):
    async with a_group(valkey, tmp_path, workers=1) as group:
        await group.predict()
        old = group.workers()
        group.process.send_signal(signal.SIGHUP)
        await until(lambda: all(map(is_gone, old)), 20)
        assert await group.metric("model_predictions_total{") == 1


def test_a_port_in_use_is_refused():
    port = free_port()
    first = bind("127.0.0.1", port, 2)
    first[0].listen()
    with pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", port, 2)
    for item in first:
        item.close()


def test_a_port_is_claimed_before_any_process_listens():
    """The kernel would let two instances bind the same port, and share it."""
    port = free_port()
    claim("127.0.0.1", port)
    code = f"from dataplane.sockets import claim; claim('127.0.0.1', {port})"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert b"in use" in other.stderr


def test_workers_share_one_port():
    sockets = bind("127.0.0.1", 0, 3)
    assert len({item.getsockname() for item in sockets}) == 1
    assert len({os.fstat(item.fileno()).st_ino for item in sockets}) == 3
    for item in sockets:
        item.close()


async def test_an_instance_whose_parent_was_killed_starts_again_at_once(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        kill(group.process.pid)
        await group.process.wait()
        await group.start()
        await until(lambda: len(group.workers()) == 2, 60)
        assert (await group.predict()).status_code == 200


async def test_workers_share_the_grpc_port_and_survive_each_other(valkey, tmp_path):
    port = free_port()
    async with a_group(valkey, tmp_path, INTERLOCK_GRPC_BIND=f"127.0.0.1:{port}") as group:
        await until(lambda: all_listen(group, port), 20)
        assert [await sum_by_grpc(port) for _ in range(8)] == [10.0] * 8
        victim = group.workers()[0]
        kill(victim)
        await until(lambda: is_gone(victim) and all_listen(group, port), 20)
        assert [await sum_by_grpc(port) for _ in range(8)] == [10.0] * 8


async def test_a_rolling_restart_fails_no_grpc_call_of_a_client_that_retries(valkey, tmp_path):
    port = free_port()
    async with a_group(valkey, tmp_path, INTERLOCK_GRPC_BIND=f"127.0.0.1:{port}") as group:
        old, answers, done = group.workers(), [], asyncio.Event()
        await until(lambda: all_listen(group, port), 20)

        async def ask():
            while not done.is_set():
                answers.append(await sum_by_grpc(port, RETRYING))

        clients = [asyncio.create_task(ask()) for _ in range(6)]
        group.process.send_signal(signal.SIGHUP)
        await until(lambda: all(map(is_gone, old)) and len(answers) > 100, 30)
        done.set()
        await asyncio.gather(*clients)
        assert set(answers) == {10.0}


def all_listen(group, port):
    """Return whether both workers do on `port`; an instance is ready with its first one."""
    text = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [line.split() for line in text.splitlines() if f":{port:04X} " in line]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    held = [sockets & descriptors(pid) for pid in group.workers()]
    return len(held) == 2 and all(held)


def descriptors(pid):
    targets = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            targets.add(str(path.readlink()))
    return targets


# As in docs/dataplane.md.
RETRY = {
    "maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}  # fmt: skip
SERVICE = {"name": [{"service": "inference.GRPCInferenceService"}], "retryPolicy": RETRY}
RETRYING = [
    ("grpc.service_config", json.dumps({"methodConfig": [SERVICE]})),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]


async def sum_by_grpc(port, options=()):
    """Send a request over a new connection, so that any worker may answer."""
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([ROW], dtype=np.float32))
    own = [("grpc.use_local_subchannel_pool", 1), *options]
    async with triton.InferenceServerClient(f"127.0.0.1:{port}", channel_args=own) as client:
        answer = await client.infer("sums", [tensor], client_timeout=10)
        return float(answer.as_numpy("sum")[0, 0])


async def test_a_worker_that_hangs_is_killed_and_started_again(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        victim, sibling = group.workers()
        # A worker that has reported may still be starting, and has a longer limit.
        while await group.metric("interlock_ready_workers") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        os.kill(victim, signal.SIGSTOP)
        # 1.5 s, plus the time in which its parent itself had no core.
        await until(lambda: is_gone(victim), 60)
        await until(lambda: len(group.workers()) == 2, 20)
        await group.ready()
        assert sibling in group.workers()
        assert await group.metric("interlock_worker_restarts_total") == 1


async def test_the_time_that_a_parent_was_stopped_does_not_count(valkey, tmp_path):
    async with a_group(valkey, tmp_path, INTERLOCK_WORKER_SILENT_S="2") as group:
        workers = group.workers()
        for pid in (group.process.pid, *workers):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(3)
        for pid in (*workers, group.process.pid):
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(1.5)
        assert group.workers() == workers
        assert (await group.predict()).status_code == 200
