"""`python -m dataplane.reading.process`: reads large requests for one worker, and ends with it.

Its memory is limited by an argument, and it yields to the worker: its priority is lower.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from dataplane.codec import Codec, InferRequest, Spec, load_object, read_header_length
from dataplane.compression import inflate
from dataplane.errors import Refusal, bad_request
from dataplane.outcomes import OUTCOMES_BOUNDS, read_outcomes
from dataplane.reading.jobs import Done, Job, Refused, Tensors, too_complex
from dataplane.request_bounds import Bounds, Tally
from dataplane.worker_rpc import Peer

log = logging.getLogger("interlock.dataplane")

SPEC_TIMEOUT_S = 5.0
CODECS_MAX = 64
NICE = 5
# The error of orjson for JSON that it has no memory for.
_NO_MEMORY = "Not enough memory"
# For a plain request, until its model is known.
_ANY_MODEL = Bounds()


class Reader:
    """Reads one body at a time."""

    def __init__(self) -> None:
        # The connection to the worker.
        self.peer: Peer
        # Codecs by their arguments; bounded.
        self._codecs: dict[bytes, Codec] = {}

    async def read(self, body: Any) -> tuple[bool, Done | Refused]:
        """Return whether the body of a Job could be read, and its content or the error."""
        try:
            return True, await self._read(msgspec.convert(body, Job))
        except Refusal as refusal:
            if refusal.code == "malformed_json" and _NO_MEMORY in refusal.message:
                refusal = too_complex()
            return False, Refused.of(refusal)
        except MemoryError:
            return False, Refused.of(too_complex())
        except Exception:
            log.exception("a body could not be read")
            return False, Refused.of(Refusal(500, "internal_error", "the body could not be read"))
        finally:
            gc.collect()

    async def _read(self, job: Job) -> Done:
        if job.kind == "plain":
            return await self._plain(job)
        if job.kind == "outcomes":
            text = _text(job, OUTCOMES_BOUNDS)
            numbers = count()
            outcomes = read_outcomes(text, job.now_ms, lambda: f"{job.id_prefix}.{next(numbers):x}")
            return Done(length=len(text), outcomes=outcomes, refused=outcomes.refused)
        assert job.spec is not None
        codec = self._codec(job.spec)
        if job.kind == "grpc":
            request = _read_message(codec, job.body)
            return Done(length=len(job.body), tensors=_tensors(request, job))
        return _infer(codec, job)

    async def _plain(self, job: Job) -> Done:
        text = _text(job, _ANY_MODEL)
        document = load_object(text)
        is_known, spec = await self.peer.call("spec", document.get("model"), SPEC_TIMEOUT_S)
        if not is_known:
            raise msgspec.convert(spec, Refused).refusal()
        codec = self._codec(msgspec.convert(spec, Spec))
        if "data" not in document:
            raise bad_request("malformed_request", "'data' is missing")
        return Done(
            length=len(text),
            tensors=_tensors(codec.read_rows(document["data"]), job),
            version=_scalar(document.get("version")),
            user=_scalar(document.get("user_id")),
            request_id=_scalar(document.get("request_id")),
        )

    def _codec(self, spec: Spec) -> Codec:
        key = msgspec.msgpack.encode(spec)
        codec = self._codecs.get(key)
        if codec is None:
            if len(self._codecs) >= CODECS_MAX:
                self._codecs.clear()
            codec = self._codecs[key] = Codec(
                spec.signature, spec.unit_key, batched=spec.batched, rows_max=spec.rows_max
            )
        return codec


def _infer(codec: Codec, job: Job) -> Done:
    bounds = codec.bounds
    length = job.header_length
    if length is None:
        text = _text(job, bounds)
        return Done(length=len(text), tensors=_tensors(codec.read_infer(text), job))
    # Binary data may be any bytes: only the JSON before it is counted.
    body = inflate(job.body, job.coding, job.bytes_max) if job.coding else job.body
    json_length = read_header_length(length, body)
    _count(body[:json_length], bounds)
    return Done(length=len(body), tensors=_tensors(codec.read_infer(body, json_length), job))


def _tensors(request: InferRequest, job: Job) -> Tensors:
    """Return the tensors, which may be no larger than the same request in binary form."""
    if sum(map(len, request.tensors)) > job.bytes_max:
        message = f"the tensors of the request take more than {job.bytes_max} bytes"
        raise Refusal(413, "body_too_large", message)
    return Tensors.of(request)


def _text(job: Job, bounds: Bounds) -> bytes:
    """Return the decompressed body, which is within `bounds`. Raises Refusal."""
    if not job.coding:
        _count(job.body, bounds)
        return job.body
    tally = Tally(bounds)
    text = inflate(job.body, job.coding, job.bytes_max, tally.add)
    tally.end(text)
    return text


def _count(text: bytes, bounds: Bounds) -> None:
    tally = Tally(bounds)
    tally.add(text)
    tally.end(text)


def _scalar(value: object) -> object:
    """Return what the worker needs: for a list or an object only its type matters."""
    return value if isinstance(value, (str, int, float, type(None))) else type(value).__name__


def _read_message(codec: Codec, data: bytes) -> Any:
    # Imported at the first call: its messages take time and memory to load.
    from dataplane.grpc_codec import parse_request, read_message

    return read_message(codec, parse_request(data))


def limit_memory(bytes_max: int) -> None:
    """Limit the memory of this process to `bytes_max` more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + bytes_max
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


async def run(channel: socket.socket) -> None:
    """Read for the worker at the other end of `channel` until it ends."""
    reader = Reader()
    streams = await asyncio.open_unix_connection(sock=channel)
    reader.peer = Peer(*streams, {"read": reader.read})
    await reader.peer.run()


def main() -> int:
    """Run the process; the arguments come from `dataplane.reading.queue`."""
    channel, memory_bytes = map(int, sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(levelname)s reading: %(message)s")
    os.nice(NICE)
    # These signals are for the worker, with which this process ends.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    gc.freeze()
    limit_memory(memory_bytes)
    asyncio.run(run(socket.socket(fileno=channel)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
