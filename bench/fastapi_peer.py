"""The Python peer for comparison: FastAPI with a batching queue in front of Triton.

A batch has all waiting rows, up to 64, when a slot is free. It is sent to Triton with the
asynchronous `tritonclient`; several batches may be in flight. uvicorn runs it, with one worker per
core.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from fastapi import FastAPI
from pydantic import BaseModel

ADDRESS = os.environ.get("PEER_TRITON", "127.0.0.1:8001")
MODEL = os.environ.get("PEER_MODEL", "flowers.1")
ROWS_MAX = 64
IN_FLIGHT_MAX = 4

Waiting = tuple[list[float], asyncio.Future[dict[str, Any]]]


class Input(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Infer(BaseModel):
    inputs: list[Input]


class Batcher:
    """Collects rows into batches, and returns the outputs of each row."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue(1_024)
        self.places = asyncio.Semaphore(IN_FLIGHT_MAX)
        self.client = triton.InferenceServerClient(ADDRESS)
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        while True:
            await self.places.acquire()
            batch = [await self.queue.get()]
            while len(batch) < ROWS_MAX:
                try:
                    batch.append(self.queue.get_nowait())
                except asyncio.QueueEmpty:
                    break
            task = asyncio.create_task(self.send(batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def send(self, batch: list[Waiting]) -> None:
        try:
            rows = np.array([row for row, _ in batch], dtype=np.float32)
            tensor = triton.InferInput("features", list(rows.shape), "FP32")
            tensor.set_data_from_numpy(rows)
            response = await self.client.infer(MODEL, [tensor], model_version="1")
            probabilities = response.as_numpy("probabilities")
            labels = response.as_numpy("label")
            for (_, future), scores, label in zip(batch, probabilities, labels, strict=True):
                future.set_result({"probabilities": scores.tolist(), "label": label.tolist()})
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self.places.release()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.batcher = batcher = Batcher()
    task = asyncio.create_task(batcher.run())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/v2/models/flowers/infer")
async def infer(request: Infer) -> dict[str, Any]:
    future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    await app.state.batcher.queue.put((request.inputs[0].data, future))
    result = await future
    return {
        "model_name": "flowers",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 3],
             "data": result["probabilities"]},
            {"name": "label", "datatype": "INT64", "shape": [1, 1], "data": result["label"]},
        ],
    }  # fmt: skip
