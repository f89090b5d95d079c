"""The drill's load: every response is compared with the expected prediction of its version."""

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
# One in four requests names its version and bypasses the split.
EXPLICIT_PART = 0.25
# Float32 on two runtimes; other versions differ by far more.
TOLERANCE = 1e-4
# A model's default deadline; a later response counts as late.
LATE_S = 1.0
WRONG = -1


class Expected:
    """The expected predictions of each version for each row, computed with ONNX Runtime."""

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
        """Return whether `content` is that version's prediction for that row."""
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
    """Predictions for random units, some of a named version; a wrong one has status WRONG."""

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
            status, code = WRONG, f"not the prediction of version {named or version}"
        return Answer(at, monotonic() - at, status, code, version, *others)

    def is_well(self, since: float) -> bool:
        """Return whether the last 100 requests, all sent after `since`, succeeded in time."""
        recent = [answer for answer in self.answers if answer.at >= since][-100:]
        return len(recent) == 100 and not any(a.failed or a.took_s > LATE_S for a in recent)


@dataclass(frozen=True)
class Row:
    """The result of one fault; `back_s` is None if the part did not recover in time."""

    fault: str
    checked: int
    wrong: int
    refused: str
    acknowledged: int
    lost: int
    doubled: int
    back_s: float | None
    # Outcomes without a 202 response; their senders know.
    unacknowledged: int = 0
    # Outcomes stored only in a database that was replaced by a backup.
    replaced: int = 0

    @property
    def is_bad(self) -> bool:
        return bool(self.wrong or self.lost or self.doubled or self.back_s is None)

    def __str__(self) -> str:
        back = f"{self.back_s:.1f} s" if self.back_s is not None else "**not back**"
        counts = {"refused": self.unacknowledged, "newer than the backup": self.replaced}
        others = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        beside = f" ({others})" if others else ""
        cells = [
            self.fault, f"{self.checked:,}", str(self.wrong), self.refused,
            f"{self.acknowledged}, {self.lost}, {self.doubled}{beside}", back,
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEAD = """\
| fault | responses checked | wrong | refused or late | outcomes acked, lost, doubled | back after |
| --- | --- | --- | --- | --- | --- |"""


def judge(
    fault: str,
    answers: Sequence[Answer],
    sent: Outcomes,
    stored: Sequence[str],
    back_s: float | None,
    replaced: Collection[str] = (),
) -> Row:
    """Compare responses with expected predictions, and acknowledged with stored outcomes."""
    acknowledged = sent.accepted
    doubled = [unit for unit, count in Counter(stored).items() if count > 1]
    return Row(
        fault,
        checked=sum(answer.status in (200, WRONG) for answer in answers),
        wrong=sum(answer.status == WRONG for answer in answers),
        refused=_refused(answers),
        acknowledged=len(acknowledged),
        lost=len(acknowledged - set(stored) - set(replaced)),
        doubled=len(doubled),
        back_s=back_s,
        unacknowledged=len(sent.sent) - len(acknowledged),
        replaced=len(acknowledged & set(replaced)),
    )


def _refused(answers: Sequence[Answer]) -> str:
    """Return counts of refused responses by status and of slow responses, and their time span."""
    bad = [a for a in answers if a.status not in (200, WRONG) or a.took_s > LATE_S]
    if not bad:
        return "none"
    kinds = Counter(_kind(answer) for answer in bad)
    counts = ", ".join(f"{kind} × {count}" for kind, count in sorted(kinds.items()))
    span_s = max(a.at + a.took_s for a in bad) - min(a.at for a in bad)
    return f"{counts}, within {span_s:.1f} s"


def _kind(answer: Answer) -> str:
    if answer.status == 200:
        return "late"
    return str(answer.status) if answer.status else "no connection"
