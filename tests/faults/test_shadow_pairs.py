"""A shadow step passes on real responses of stable and shadow with labels by request id."""

from __future__ import annotations

import http.client
import json
from itertools import count
from time import monotonic

from tests.faults.ground import Ground, wait_until
from tests.faults.load import Answer, Question, Steady, label_of
from tests.faults.seed import MODEL, VERSIONS

METRIC, PLAN = "species", "labelled-shadow"
CHECK = {"check": "shadow-accuracy", "settings": {"metric": METRIC, "margin_bp": 500}}
STEPS = [
    {"weight_bp": 0, "shadow_bp": 10_000, "bake_s": 1, "checks": [CHECK]},
    {"weight_bp": 5_000, "bake_s": 1, "checks": ["error-rate"]},
]


class Labelled(Steady):
    """Requests, each followed by its correct label, identified only by the request id."""

    def __init__(self, port: int, question: Question) -> None:
        super().__init__(port, per_s=60, threads=4)
        self._pairs = question.pairs
        self._numbers = count()

    def _ask(self, connection: http.client.HTTPConnection, at: float) -> Answer:
        number = next(self._numbers)
        body, label = self._pairs[number % len(self._pairs)]
        path = f"/v2/models/{MODEL}/infer"
        connection.request("POST", path, body, {"x-unit-id": f"labelled-{number}"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200 or label_of(content) != label:
            return Answer(at, monotonic() - at, response.status or -1)
        request_id = response.headers["x-interlock-request-id"]
        outcome = {"metric": METRIC, "value": label, "request_id": request_id}
        connection.request("POST", "/outcomes", json.dumps(outcome).encode())
        response = connection.getresponse()
        response.read()
        return Answer(at, monotonic() - at, 200 if response.status == 202 else response.status)


def test_pairs_and_labels_of_a_live_shadow_are_joined(ground: Ground) -> None:
    ground.control.post("metrics/", {"name": METRIC, "kind": "mean"})
    plan = {"name": PLAN, "interval_s": 1, "margin_bp": 500, "extend_max": 60, "steps": STEPS}
    ground.control.post("plans/", plan)
    stable = ground.control.get(f"models/{MODEL}/")["stable"]
    target = next(number for number in VERSIONS if number != stable)
    started = {"model": MODEL, "version": str(target), "plan": PLAN, "overrides": ["quarantine"]}
    path = f"rollouts/{ground.control.post('rollouts/', started)['id']}/"

    with Labelled(ground.port, ground.question) as load:
        wait_until(lambda: ground.passed(path), 120, "the rollout succeeds")

    assert load.answers
    assert not [answer for answer in load.answers if answer.failed]
    query = (
        "SELECT reason, evidence->'n', evidence->'lost', evidence->'won' FROM rollouts_evaluation "
        "WHERE rollout_id = %s AND check_name = 'shadow-accuracy' AND verdict = 'pass'"
    )
    ((reason, pairs, lost, won),) = ground.rows(query, path.split("/")[1])[:1]
    # Both versions have the same artifact.
    assert (lost, won) == (0, 0)
    assert pairs >= 20, reason
