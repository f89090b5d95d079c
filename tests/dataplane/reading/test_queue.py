"""A real process reads what a worker would read, is replaced when it ends, and is limited."""

import asyncio
import gzip
import os
import signal
from contextlib import asynccontextmanager

import orjson
import pytest

from contract.routing import Signature, Tensor, UnitKey
from dataplane.codec import Codec
from dataplane.errors import Refusal
from dataplane.reading import Job, Reading
from dataplane.reading import queue as module
from tests.dataplane.worlds import SUMS

LATER = 1e12
FREE = Signature(inputs=(Tensor(name="x", datatype="FP64", shape=(-1, -1)),), outputs=())
MEGABYTE = 1 << 20


def codec(signature=SUMS, rows_max=4):
    return Codec(signature, UnitKey(), batched=True, rows_max=rows_max)


def infer(document, reader=None, packed=False, **changes):
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    settings = {"kind": "infer", "bytes_max": 16 * MEGABYTE, "spec": (reader or codec()).spec}
    if packed:
        body, settings["coding"] = gzip.compress(body), b"gzip"
    return Job(body=body, **settings | changes)


def tensor(rows, **changes):
    shape = [len(rows), len(rows[0])]
    return {"name": "x", "datatype": "FP32", "shape": shape, "data": rows} | changes


class Caller:
    job = None


@asynccontextmanager
async def a_reading(bytes_max=16 * MEGABYTE):
    reading = Reading(bytes_max)
    try:
        yield reading
    finally:
        await reading.close()


def ask(reading, job, until=LATER, spec=None, caller=None):
    future = asyncio.get_running_loop().create_future()
    reading.read(caller or Caller(), job, until, future.set_result, spec)
    return future


@pytest.mark.parametrize("packed", [False, True])
async def test_a_request_is_read_as_in_the_worker(packed):
    document = {
        "id": "7",
        "inputs": [tensor([[1, 2, 3, 4.5]] * 3)],
        "outputs": [{"name": "label", "parameters": {"binary_data": True}}],
        "parameters": {"unit_id": "u", "mode": "fast"},
    }
    reader = codec()
    async with a_reading() as reading:
        done = await ask(reading, infer(document, reader, packed))
    assert done.length == len(orjson.dumps(document))
    assert done.tensors.request(reader) == reader.read_infer(orjson.dumps(document))


async def test_a_refusal_is_the_same_as_in_the_worker():
    document = {"inputs": [tensor([[1, 2]])]}
    with pytest.raises(Refusal) as caught:
        codec().read_infer(orjson.dumps(document))
    async with a_reading() as reading:
        refusal = await ask(reading, infer(document))
    assert (refusal.status, refusal.code) == (caught.value.status, caught.value.code)
    assert refusal.message == caught.value.message


async def test_a_plain_request_names_its_model_in_its_body():
    names = []

    def spec(name):
        names.append(name)
        if name != "sums":
            raise Refusal(404, "model_not_found", "no")
        return codec().spec

    body = {"model": "sums", "user_id": "u", "data": [[1, 2, 3, 4]]}
    async with a_reading() as reading:
        for model in ("sums", "other"):
            job = infer(body | {"model": model}, kind="plain", spec=None)
            answer = await ask(reading, job, spec=spec)
            if model == "sums":
                assert (answer.user, answer.version, answer.tensors.rows) == ("u", None, 1)
            else:
                assert answer.code == "model_not_found"
    assert names == ["sums", "other"]


async def test_outcomes_are_read_and_named():
    outcomes = [{"unit_id": f"u{i}", "metric": "m", "value": i} for i in range(3)]
    job = infer(outcomes, kind="outcomes", spec=None, id_prefix="p", now_ms=5)
    async with a_reading() as reading:
        done = await ask(reading, job)
    assert [o.event_id for o in done.outcomes] == ["p.0", "p.1", "p.2"]
    assert [(o.unit_id, o.value, o.occurred_at_ms) for o in done.outcomes][1] == ("u1", 1.0, 5)


async def test_a_process_that_ends_is_replaced_and_the_body_read_again():
    async with a_reading() as reading:
        await ask(reading, infer({"inputs": [tensor([[1, 2, 3, 4]])]}))
        killed = reading._process.pid
        os.kill(killed, signal.SIGKILL)
        done = await ask(reading, infer({"inputs": [tensor([[1, 2, 3, 4]])]}))
        assert done.tensors.rows == 1
        assert reading._process.pid != killed


async def test_a_body_that_needs_too_much_memory_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MEMORY_BYTES_MIN", 64 * MEGABYTE)
    job = infer(b'{"inputs":[%b1]}' % (b"1.5," * (4 * MEGABYTE)), codec(FREE))
    async with a_reading(bytes_max=MEGABYTE) as reading:
        refusal = await ask(reading, job)
        assert (refusal.status, refusal.code) == (413, "too_complex")
        done = await ask(reading, infer({"inputs": [tensor([[1, 2, 3, 4]])]}))
        assert done.tensors.rows == 1


async def test_a_body_that_takes_too_long_is_refused_and_the_next_is_read(monkeypatch):
    async with a_reading() as reading:
        await ask(reading, infer({"inputs": []}))
        os.kill(reading._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.1)
        refusal = await ask(reading, infer({"inputs": []}))
        assert (refusal.status, refusal.code) == (413, "too_complex")
        monkeypatch.setattr(module, "READ_TIMEOUT_S", 20.0)
        done = await ask(reading, infer({"inputs": [tensor([[1, 2, 3, 4]])]}))
        assert done.tensors.rows == 1


async def test_the_queue_is_limited_and_clients_that_hang_up_leave_it(monkeypatch):
    monkeypatch.setattr(module, "WAITING_MAX", 2)
    async with a_reading() as reading:
        caller = Caller()
        first, late = ask(reading, infer({}), caller=caller), ask(reading, infer({}), until=0.0)
        with pytest.raises(Refusal) as caught:
            ask(reading, infer({}))
        assert (caught.value.status, caught.value.code) == (503, "reading_busy")
        caller.job.abandoned()
        assert [(await answer).code for answer in (first, late)] == ["deadline_exceeded"] * 2


async def test_the_process_ends_with_its_worker():
    reading = Reading()
    await ask(reading, infer({"inputs": []}))
    process = reading._process
    await reading.close()
    assert process.returncode is not None
    with pytest.raises(Refusal):
        ask(reading, infer({}))
