"""The process that reads large bodies is started again without breaking gRPC calls."""

import asyncio
import gzip
import os
import signal
from collections import Counter

import grpc
import grpc.aio
import httpx

from dataplane.grpc_service import SERVICE
from tests.attacks.conftest import ground, valkey
from tests.dataplane.groups import ROW
from tests.dataplane.test_grpc_service import message
from tests.dataplane.worlds import body, until
from tests.faults.ground import processes

__all__ = ["ground", "valkey"]

CONNECTIONS = 8
STARTS = 24


async def call_for_ever(port, answers):
    options = [("grpc.use_local_subchannel_pool", 1)]
    # Large enough to be always in transit; it does not fit the model, and is refused.
    request = message(raw_input_contents=[bytes(4_000_000)]).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        method = channel.unary_unary(f"{SERVICE}ModelInfer")
        while True:
            try:
                await method(request, timeout=30)
            except grpc.aio.AioRpcError as error:
                answers[error.code().name] += 1


def readers(worker):
    """Return the pids of the processes that read large bodies for a worker."""
    return [pid for pid, command in processes(worker).items() if "dataplane.reading" in command]


async def test_no_connection_breaks_when_a_process_is_started(ground):
    (worker,) = ground.group.workers()
    answers = Counter()
    calls = [
        asyncio.create_task(call_for_ever(ground.grpc_port, answers)) for _ in range(CONNECTIONS)
    ]
    # A body of this decompressed size is read by that process.
    packed = gzip.compress(body(ROW) + b" " * 20_000)
    headers = {"content-encoding": "gzip"}
    async with httpx.AsyncClient(base_url=ground.group.url, headers=headers, timeout=60) as client:
        for _ in range(STARTS):
            answer = await client.post("/v2/models/sums/infer", content=packed)
            assert answer.status_code == 200, answer.text
            (reader,) = readers(worker)
            os.kill(reader, signal.SIGKILL)
            before = answers["INVALID_ARGUMENT"]
            await until(lambda before=before: answers["INVALID_ARGUMENT"] > before + CONNECTIONS)
    for call in calls:
        call.cancel()
    assert set(answers) == {"INVALID_ARGUMENT"}
