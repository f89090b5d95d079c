"""Load generators: threads that send requests at a steady rate and record every result."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np

UNITS = 5_000
# Far above every deadline of the product.
CLIENT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a request; `status` is 0 if the connection failed, `at` is monotonic time."""

    at: float
    took_s: float
    status: int
    code: str = ""
    version: str = ""
    variant: str = ""
    fallback: str = ""
    retry_after: str = ""

    @property
    def failed(self) -> bool:
        return self.status != 200


class Question:
    """Requests for the flowers model with their expected labels, computed with ONNX Runtime."""

    def __init__(self, artifact: Path) -> None:
        import onnxruntime

        rows = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
        session = onnxruntime.InferenceSession(
            artifact.read_bytes(), providers=["CPUExecutionProvider"]
        )
        (labels,) = session.run(["label"], {"features": rows})
        self.pairs = [
            (self._body(row), int(label))
            for row, label in zip(rows.tolist(), labels.ravel(), strict=True)
        ]

    @staticmethod
    def _body(row: list[float]) -> bytes:
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, 4], "data": row}
        return json.dumps({"inputs": [tensor]}).encode()


def label_of(body: bytes) -> int:
    """Return the label in a response body."""
    outputs = {item["name"]: item["data"] for item in json.loads(body)["outputs"]}
    return int(outputs["label"][0])


class Steady:
    """Threads that send requests at a steady pace while the `with` block runs."""

    def __init__(self, port: int, per_s: float, threads: int) -> None:
        self.port = port
        self.threads = threads
        self.answers: list[Answer] = []
        self._period_s = threads / per_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i / per_s,), daemon=True)
            for i in range(threads)
        ]

    def __enter__(self) -> Any:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, offset_s: float) -> None:
        next_at = monotonic() + offset_s
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CLIENT_TIMEOUT_S)
        try:
            while not self._stop.wait(max(0.0, next_at - monotonic())):
                # A slot missed by a slow response is skipped, so that no burst follows.
                next_at = max(next_at + self._period_s, monotonic())
                self._turn(connection)
        finally:
            connection.close()

    def _turn(self, connection: http.client.HTTPConnection) -> None:
        at = monotonic()
        try:
            answer = self._ask(connection, at)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            answer = Answer(at, monotonic() - at, 0, type(error).__name__)
        self.answers.append(answer)

    def _ask(self, connection: http.client.HTTPConnection, at: float) -> Answer:
        raise AssertionError("subclasses must define _ask")


class Load(Steady):
    """Predictions for random units; a wrong label has status −1."""

    def __init__(
        self,
        port: int,
        question: Question,
        *,
        model: str = "flowers",
        per_s: float = 200,
        threads: int = 8,
    ) -> None:
        super().__init__(port, per_s, threads)
        self._path = f"/v2/models/{model}/infer"
        self._question = question

    def _ask(self, connection: http.client.HTTPConnection, at: float) -> Answer:
        body, label = random.choice(self._question.pairs)
        unit = f"u{random.randrange(UNITS)}"
        connection.request("POST", self._path, body, {"x-unit-id": unit})
        response = connection.getresponse()
        content = response.read()
        status, code = response.status, ""
        if status != 200:
            code = json.loads(content)["code"]
        elif label_of(content) != label:
            status, code = -1, "wrong label"
        named = [response.headers.get(name, "") for name in NAMED]
        return Answer(at, monotonic() - at, status, code, *named)

    def since(self, at: float) -> list[Answer]:
        """Return the results of requests sent after `at`."""
        return [answer for answer in self.answers if answer.at >= at]

    def is_well(self, since: float) -> bool:
        """Return whether the last 100 requests, all sent after `since`, succeeded."""
        recent = self.since(since)[-100:]
        return len(recent) == 100 and not any(answer.failed for answer in recent)


NAMED = ("x-interlock-version", "x-interlock-variant", "x-interlock-fallback", "retry-after")


class Outcomes(Steady):
    """Outcomes, each with its own unit, so that every row can be identified."""

    def __init__(self, port: int, prefix: str, metric: str, *, per_s: float = 30) -> None:
        super().__init__(port, per_s, threads=2)
        self.prefix = prefix
        self.sent: dict[str, int] = {}
        self._metric = metric
        self._numbers = iter(range(1_000_000))

    def _ask(self, connection: http.client.HTTPConnection, at: float) -> Answer:
        unit = f"{self.prefix}-{next(self._numbers)}"
        body = json.dumps({"unit_id": unit, "metric": self._metric, "value": 1}).encode()
        self.sent[unit] = 0
        connection.request("POST", "/outcomes", body)
        response = connection.getresponse()
        content = response.read()
        self.sent[unit] = response.status
        code = "" if response.status == 202 else json.loads(content)["code"]
        return Answer(at, monotonic() - at, response.status, code)

    @property
    def accepted(self) -> set[str]:
        """The units whose outcome got a 202 response: those must never be lost."""
        return {unit for unit, status in self.sent.items() if status == 202}


def failures(answers: Iterable[Answer]) -> dict[str, int]:
    """Count the results other than 200, by status and code."""
    return dict(Counter(f"{a.status} {a.code}" for a in answers if a.failed))


def recovered_after_s(answers: Iterable[Answer], fault_at: float) -> float:
    """Return the seconds from the fault to the last failed request; 0 if none failed."""
    return max((a.at - fault_at for a in answers if a.failed and a.at >= fault_at), default=0.0)


def report(what: str, load: Load, fault_at: float) -> None:
    """Print one line about all requests; pytest shows it if the test fails, or with -s."""
    answers = list(load.answers)
    after = [a for a in answers if a.at >= fault_at]
    served = [a.took_s * 1e3 for a in after if not a.failed] or [0.0]
    sys.stdout.write(
        f"\n{what}: {len(answers)} requests, failed {failures(answers) or 'none'}, "
        f"recovered after {recovered_after_s(answers, fault_at):.1f} s, "
        f"fell back {sum(bool(a.fallback) for a in answers)}, "
        f"median {median(served):.1f} ms, slowest {max(a.took_s for a in after) * 1e3:.0f} ms\n"
    )
