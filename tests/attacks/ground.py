"""An attack of two seconds, and the service that another client gets meanwhile."""

from __future__ import annotations

import asyncio
import sys

import httpx
import orjson

from bench.attackers import GRPC_BYTES, OVER_GRPC
from bench.testbed import resident_mb
from tests.dataplane.groups import ROW
from tests.dataplane.worlds import body

SENDERS = 16
SECONDS = 2.0
# Memory that a worker may take beyond its memory at rest; see docs/dataplane.md.
GROWTH_MB = 3 * 64 * 1024**2 / 1e6
# gRPC has a message in memory several times before any of our code sees it.
GRPC_GROWTH_MB = SENDERS * 8 * GRPC_BYTES / 1e6


class Ground:
    """An instance with one worker."""

    def __init__(self, group, grpc_port):
        self.group = group
        self.grpc_port = grpc_port

    async def attack(self, name):
        """Send the attack `name` from many connections; return the answers by status.

        Meanwhile another client gets correct answers, no worker dies, and none takes more memory
        than stated. The latency of those answers is measured by `./run attack`: here other tests
        use the cores too.
        """
        workers = self.group.workers()
        rest_mb = resident_mb(workers[0])
        port = self.grpc_port if name in OVER_GRPC else self.group.port
        arguments = (name, str(port), "sums", str(SENDERS), str(SECONDS))
        sender = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.attackers", *arguments, stdout=asyncio.subprocess.PIPE
        )
        answering = asyncio.create_task(sender.communicate())
        most_mb = rest_mb
        try:
            async with httpx.AsyncClient(base_url=self.group.url, timeout=20) as client:
                while not answering.done():
                    answer = await client.post("/v2/models/sums/infer", content=body(ROW))
                    assert answer.status_code == 200, answer.text
                    most_mb = max(most_mb, *map(resident_mb, workers))
        finally:
            # Its pipe is closed once it has ended.
            await answering
        output, _ = await answering
        assert self.group.workers() == workers
        growth_mb_max = GRPC_GROWTH_MB if name in OVER_GRPC else GROWTH_MB
        assert most_mb - rest_mb < growth_mb_max, f"{name}: {most_mb - rest_mb:.0f} MB more"
        return orjson.loads(output)
