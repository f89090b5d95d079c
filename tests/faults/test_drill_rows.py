"""The drill's rows: what counts as wrong, lost and doubled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.faults import drill
from tests.faults.artifact import write_artifact
from tests.faults.drill_faults import all_faults, select_faults
from tests.faults.drill_load import WRONG, Expected, Row, judge
from tests.faults.load import Answer, Outcomes


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {str(n): write_artifact(folder / f"{n}.onnx", seed=n) for n in (1, 2)}


def answer_of(artifact: Path, body: bytes, shift: float = 0.0) -> bytes:
    """Return the response of a server with this artifact to the request."""
    features = np.array(json.loads(body)["inputs"][0]["data"], np.float32).reshape(1, 4)
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    probabilities, label = session.run(["probabilities", "label"], {"features": features})
    outputs = [
        {"name": "probabilities", "data": [p + shift for p in probabilities.ravel().tolist()]},
        {"name": "label", "data": label.ravel().tolist()},
    ]
    return json.dumps({"outputs": outputs}).encode()


def test_a_prediction_of_another_version_is_wrong(artifacts: dict[str, Path]) -> None:
    expected = Expected(artifacts)
    for row, body in enumerate(expected.bodies):
        right = answer_of(artifacts["1"], body)
        assert expected.is_right("1", row, right)
        assert not expected.is_right("2", row, right)
        assert not expected.is_right("9", row, right)
    other = answer_of(artifacts["1"], expected.bodies[1])
    assert not expected.is_right("1", 0, other)
    assert not expected.is_right("1", 0, answer_of(artifacts["1"], expected.bodies[0], 0.001))


def row(stored: list[str], answers: list[Answer] | None = None, back_s: float | None = 1.0) -> Row:
    sent = Outcomes(1, "d", "clicked")
    sent.sent = {"d-0": 202, "d-1": 202, "d-2": 503, "d-3": 0}
    return judge("it", answers or [], sent, stored, back_s)


def test_an_unacknowledged_outcome_may_be_stored_or_not() -> None:
    for stored in (["d-0", "d-1"], ["d-0", "d-1", "d-3"]):
        result = row(stored)
        counts = (result.acknowledged, result.lost, result.doubled, result.unacknowledged)
        assert counts == (2, 0, 0, 2)
        assert not result.is_bad


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (row(["d-0"]), "2, 1, 0 (2 refused)"),
        (row(["d-0", "d-1", "d-1"]), "2, 0, 1 (2 refused)"),
        (row(["d-0", "d-1"], [Answer(0.0, 0.1, WRONG)]), "| it | 1 | 1 | none |"),
        (row(["d-0", "d-1"], back_s=None), "**not back**"),
    ],
    ids=["lost", "doubled", "wrong", "away"],
)
def test_a_bad_row_fails_the_drill(result: Row, text: str) -> None:
    assert result.is_bad
    assert text in str(result)


def test_refusals_and_late_responses_are_reported_with_their_span() -> None:
    answers = [
        Answer(1.0, 0.1, 200),
        Answer(2.0, 0.1, 503),
        Answer(2.5, 1.5, 200),
        Answer(3.0, 0.5, 0),
    ]
    result = row(["d-0", "d-1"], answers)
    assert result.refused == "503 × 1, late × 1, no connection × 1, within 2.0 s"
    assert not result.is_bad


def test_every_process_is_killed_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    names = [fault.name for fault in all_faults()]
    killed = {name.removesuffix(" killed") for name in names if name.endswith(" killed")}
    stopped = {name.removesuffix(" stopped") for name in names if name.endswith(" stopped")}
    assert killed == stopped - {"disk full: spool, redis"}
    assert len(killed) == 11
    assert [fault.name for fault in select_faults(["web"])] == ["web killed", "web stopped"]
    assert drill.main(["--list"]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == names
