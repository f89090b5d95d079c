"""The drill's load: every answer is held against what the version that it names would say."""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from tests.faults.load import NAMED, UNITS, Answer, Outcomes, Steady

ROWS = 64
# Of four requests one names its version, whatever the split says.
EXPLICIT_PART = 0.25
# Float32 on two runtimes; another version differs by far more.
TOLERANCE = 1e-4
# A model's default deadline: what is answered later came too late.
LATE_S = 1.0
WRONG = -1


class Expected:
    """What each version answers to each of the drill's rows, from ONNX Runtime itself."""

    def __init__(self, artifacts: Mapping[str, Path]) -> None:
        import onnxruntime

        rows = np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)
        self.bodies = [_body(row) for row in rows.tolist()]
        self._by_version = {}
        for version, artifact in artifacts.items():
            session = onnxruntime.InferenceSession(
                artifact.read_bytes(), providers=["CPUExecutionProvider"]
            )
            self._by_version[version] = session.run(["probabilities", "label"], {"features": rows})

    def is_right(self, version: str, row: int, content: bytes) -> bool:
        """Say whether `content` is that version's answer to that row."""
        if version not in self._by_version:
            return False
        outputs = {item["name"]: item["data"] for item in json.loads(content)["outputs"]}
        probabilities, label = (values[row] for values in self._by_version[version])
        return int(outputs["label"][0]) == int(label.ravel()[0]) and bool(
            np.allclose(outputs["probabilities"], probabilities.ravel(), atol=TOLERANCE, rtol=0)
        )


def _body(row: list[float]) -> bytes:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 4], "data": row}
    return json.dumps({"inputs": [tensor]}).encode()


class CheckedLoad(Steady):
    """Predictions for random units, some of a version that is named; a wrong one is WRONG."""

    def __init__(
        self, port: int, model: str, expected: Expected, *, per_s: float = 200, threads: int = 8
    ) -> None:
        super().__init__(port, per_s, threads)
        self._model = f"/v2/models/{model}"
        self._expected = expected

    def _ask(self, connection: http.client.HTTPConnection, at: float) -> Answer:
        row = random.randrange(ROWS)
        named = random.choice("12") if random.random() < EXPLICIT_PART else ""
        path = f"{self._model}/versions/{named}/infer" if named else f"{self._model}/infer"
        unit = f"u{random.randrange(UNITS)}"
        connection.request("POST", path, self._expected.bodies[row], {"x-unit-id": unit})
        response = connection.getresponse()
        content = response.read()
        version, *others = (response.headers.get(name, "") for name in NAMED)
        status, code = response.status, ""
        if status != 200:
            code = json.loads(content)["code"]
        elif named not in ("", version) or not self._expected.is_right(version, row, content):
            status, code = WRONG, f"not what version {named or version} answers"
        return Answer(at, monotonic() - at, status, code, version, *others)

    def is_well(self, since: float) -> bool:
        """Say whether the last hundred requests, all asked after `since`, were answered in time."""
        recent = [answer for answer in self.answers if answer.at >= since][-100:]
        return len(recent) == 100 and not any(a.failed or a.took_s > LATE_S for a in recent)


@dataclass(frozen=True)
class Row:
    """What one fault came to. `back_s` is None where it was not back within its time."""

    fault: str
    checked: int
    wrong: int
    refused: str
    acknowledged: int
    lost: int
    doubled: int
    back_s: float | None
    # Outcomes that were answered otherwise than with 202, or not at all: their senders know.
    unacknowledged: int = 0
    # Stored once, in a database that a backup took the place of.
    gone: int = 0

    @property
    def is_bad(self) -> bool:
        return bool(self.wrong or self.lost or self.doubled or self.back_s is None)

    def __str__(self) -> str:
        back = f"{self.back_s:.1f} s" if self.back_s is not None else "**not back**"
        counts = {"refused": self.unacknowledged, "newer than the backup": self.gone}
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        beside = f" ({told})" if told else ""
        cells = [
            self.fault, f"{self.checked:,}", str(self.wrong), self.refused,
            f"{self.acknowledged}, {self.lost}, {self.doubled}{beside}", back,
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEAD = """\
| fault | answers checked | wrong | refused or late | outcomes acked, lost, doubled | back after |
| --- | --- | --- | --- | --- | --- |"""


def judge(
    fault: str,
    answers: Sequence[Answer],
    sent: Outcomes,
    stored: Sequence[str],
    back_s: float | None,
    gone: Collection[str] = (),
) -> Row:
    """Hold what was asked and acknowledged against what came back and is stored."""
    acknowledged = sent.accepted
    doubled = [unit for unit, count in Counter(stored).items() if count > 1]
    return Row(
        fault,
        checked=sum(answer.status in (200, WRONG) for answer in answers),
        wrong=sum(answer.status == WRONG for answer in answers),
        refused=_refused(answers),
        acknowledged=len(acknowledged),
        lost=len(acknowledged - set(stored) - set(gone)),
        doubled=len(doubled),
        back_s=back_s,
        unacknowledged=len(sent.sent) - len(acknowledged),
        gone=len(acknowledged & set(gone)),
    )


def _refused(answers: Sequence[Answer]) -> str:
    """Return counts by status of what was refused, what was late, and how long that went on."""
    bad = [a for a in answers if a.status not in (200, WRONG) or a.took_s > LATE_S]
    if not bad:
        return "none"
    kinds = Counter(_kind(answer) for answer in bad)
    told = ", ".join(f"{kind} × {count}" for kind, count in sorted(kinds.items()))
    span_s = max(a.at + a.took_s for a in bad) - min(a.at for a in bad)
    return f"{told}, within {span_s:.1f} s"


def _kind(answer: Answer) -> str:
    if answer.status == 200:
        return "late"
    return str(answer.status) if answer.status else "no connection"
