"""From bytes to bytes through everything except the sockets."""

import asyncio
import json

import msgspec
import pytest

from contract.routing import Batching, CanarySplit
from dataplane.http_routes import Application
from dataplane.outcome_refusals import Refusals
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.telemetry import Telemetry
from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.wire import Answer, Wire, request
from tests.dataplane.worlds import (
    DEAD,
    EXPERIMENT,
    HeldTriton,
    body,
    canary,
    knowing,
    model,
    stopped_clock,
    sums_reply,
    table,
)

ROW = [1.0, 2.0, 3.0, 4.0]
INFER = "/v2/models/sums/infer"
ALL = canary(10_000)


class Taking:
    """A publisher that accepts no outcomes, and counts the refused ones."""

    def __init__(self):
        self.refusals = Refusals()


class Plane:
    """A data plane on a fake Triton; `ask` sends one request, `answers` are all responses."""

    def __init__(self, answer=sums_reply, **changes):
        self.triton = HeldTriton(answer)
        self.telemetry = Telemetry(stopped_clock())
        loop = asyncio.get_running_loop()
        self.serving = knowing(Serving(self.triton, self.telemetry, loop, 4))
        self.apply(1, **changes)
        predictor = Predictor(self.serving, self.telemetry)
        self.application = Application(predictor, Taking(), None, "boot", None, "", None)

    def apply(self, generation, **changes):
        self.serving.apply(table(model(**changes), generation))

    async def ask(self, target=INFER, payload=None, headers=""):
        wire = Wire(answer=self.application)
        wire.feed(request(target, body(ROW) if payload is None else payload, headers))
        for _ in range(12):
            await asyncio.sleep(0)
        return Answer(wire.transport.written)

    def windows(self):
        windows, self.exposures = self.telemetry.drain(self.serving.generation)
        return {window.variant: window for window in windows}


def by_version(**answers):
    """Return the given answers for versions, and correct ones for all others."""

    def answer(call):
        version = call.split(b"/versions/", 1)[1].split(b"/", 1)[0].decode()
        result = answers.get(f"v{version}")
        return sums_reply(call) if result is None else result

    return answer


BOOM = Reply(500, None, b'{"error":"boom"}')
REFUSED = Reply(400, None, b'{"error":"no such row"}')


async def test_an_answer_names_its_model_version_variant_and_generation():
    answer = await Plane().ask()
    assert answer.status == 200
    assert (answer.json["model_name"], answer.json["model_version"]) == ("sums", "1")
    assert [output["data"] for output in answer.json["outputs"]] == [[10.0], [1]]
    names = ("version", "variant", "generation", "cache")
    got = [answer.headers[f"x-interlock-{name}"] for name in names]
    assert got == ["1", "stable", "1", "bypass"]
    stages = [stage.partition(";")[0] for stage in answer.headers["server-timing"].split(",")]
    assert stages == ["read", "cache", "queue", "infer", "total"]
    assert "x-interlock-fallback" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        ("X-Unit-Id: u1\r\n", body(ROW)),
        ("", body(ROW, parameters={"unit_id": "u1"})),
    ],
)
async def test_a_unit_comes_from_the_header_or_the_parameter(headers, payload):
    plane = Plane(split=ALL)
    answer = await plane.ask(payload=payload, headers=headers)
    assert answer.headers["x-interlock-variant"] == "canary"
    window = plane.windows()["canary"]
    assert (window.units, window.anonymous, window.split) == (1, 0, "r1")


async def test_other_parameters_reach_the_model():
    plane = Plane()
    await plane.ask(payload=body(ROW, parameters={"unit_id": "u1", "mode": "fast"}))
    call, _ = plane.triton.calls[0]
    assert b'"mode":"fast"' in call
    assert b"unit_id" not in call


async def test_an_explicit_version_bypasses_the_split_and_is_counted_separately():
    plane = Plane(split=ALL)
    answer = await plane.ask("/v2/models/sums/versions/1/infer")
    assert answer.headers["x-interlock-variant"] == "explicit"
    assert list(plane.windows()) == ["explicit"]


@pytest.mark.parametrize(
    ("target", "payload", "status", "code"),
    [
        ("/v2/models/nope/infer", body(ROW), 404, "model_not_found"),
        ("/v2/models/sums/versions/9/infer", body(ROW), 404, "version_not_found"),
        (INFER, b"{", 400, "malformed_json"),
        (INFER, body([1, 2, 3]), 400, "wrong_data"),
        ("/predict", b'{"data":[]}', 400, "malformed_request"),
        ("/predict", b'{"model":"nope"}', 404, "model_not_found"),
        ("/predict", b'{"model":"sums"}', 400, "malformed_request"),
        ("/predict", b'{"model":"sums","data":[[1]]}', 400, "wrong_shape"),
        ("/predict", b'{"model":"sums","data":[[1,2,3,4]],"version":2}', 400, "malformed_request"),
        ("/predict", b'{"model":"sums","data":[[1,2,3,4]],"user_id":[]}', 400, "wrong_unit"),
    ],
)
async def test_a_bad_request_is_refused_before_it_reaches_triton(target, payload, status, code):
    plane = Plane()
    answer = await plane.ask(target, payload)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert isinstance(answer.json["error"], str)
    assert plane.triton.calls == []
    assert plane.windows() == {}


async def test_no_stable_version_is_unavailable():
    answer = await Plane(stable=None).ask()
    assert (answer.status, answer.json["code"]) == (503, "no_stable_version")
    assert "retry-after" in answer.headers


async def test_a_body_of_an_unknown_coding_is_refused():
    assert (await Plane().ask(headers="content-encoding: br\r\n")).status == 415


async def test_a_body_that_does_not_match_its_coding_is_refused():
    answer = await Plane().ask(headers="content-encoding: gzip\r\n")
    assert (answer.status, answer.json["code"]) == (400, "malformed_encoding")


@pytest.mark.parametrize("length", ["x", "99999"])
async def test_a_json_length_beyond_the_body_is_refused(length):
    answer = await Plane().ask(headers=f"inference-header-content-length: {length}\r\n")
    assert answer.status == 400


async def test_plain_predict_gives_readable_answers():
    payload = json.dumps({"model": "sums", "user_id": "u1", "data": [ROW, [0, 0, 0, 0]]}).encode()
    plane = Plane(split=ALL)
    answer = await plane.ask("/predict", payload)
    assert answer.json == {
        "model": "sums",
        "version": "2",
        "variant": "canary",
        "request_id": answer.json["request_id"],
        "outputs": {"sum": [[10.0], [0.0]], "label": [[1], [0]]},
        "prediction": [1, 0],
    }
    assert plane.windows()["canary"].units == 1


async def test_a_request_id_of_the_client_is_kept():
    payload = json.dumps({"model": "sums", "data": [ROW]}).encode()
    plane = Plane()
    answer = await plane.ask("/predict", payload, "x-request-id: mine\r\n")
    assert answer.json["request_id"] == "mine"
    ids = [(await plane.ask("/predict", payload)).json["request_id"] for _ in range(2)]
    assert ids[0] != ids[1]


async def test_stable_answers_a_failing_canarys_request_and_the_canary_is_charged():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    answer = await plane.ask(headers="x-unit-id: u1\r\n")
    assert answer.status == 200
    assert answer.headers["x-interlock-version"] == "1"
    assert answer.headers["x-interlock-fallback"] == "failed"
    (window,) = plane.windows().values()
    assert (window.variant, window.requests, window.errors) == ("canary", 1, 1)
    assert (window.fallbacks, window.units, window.unit_errors) == (1, 1, 1)
    assert window.latency == {}


async def test_an_open_breaker_sends_the_canarys_requests_to_stable_at_once():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    for _ in range(2):
        await plane.ask()
    before = len(plane.triton.calls)
    answer = await plane.ask()
    assert answer.headers["x-interlock-fallback"] == "breaker_open"
    assert len(plane.triton.calls) == before + 1
    (trip,) = plane.serving.trips
    assert (trip.model, trip.version, trip.generation, trip.count) == ("sums", "2", 1, 1)
    assert trip.reason == "boom"
    assert plane.windows()["canary"].errors == 3


async def test_a_canary_that_recovers_is_used_again():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    for _ in range(2):
        await plane.ask()
    plane.triton.answer = sums_reply
    await asyncio.sleep(0.06)
    answer = await plane.ask()
    assert answer.headers["x-interlock-version"] == "2"


async def test_a_request_that_both_refuse_is_the_clients_fault():
    plane = Plane(by_version(v1=REFUSED, v2=REFUSED), split=ALL)
    answer = await plane.ask()
    assert (answer.status, answer.json["code"]) == (400, "refused_by_version")
    assert answer.json["error"] == "no such row"
    assert [w.requests for w in plane.windows().values()] == [0]


async def test_a_request_that_only_the_canary_refuses_is_the_canarys_fault():
    plane = Plane(by_version(v2=REFUSED), split=ALL)
    answer = await plane.ask()
    assert (answer.status, answer.headers["x-interlock-fallback"]) == (200, "refused")
    assert plane.windows()["canary"].errors == 1


async def test_if_stable_fails_as_well_the_client_gets_the_error():
    plane = Plane(by_version(v1=BOOM, v2=DEAD), split=ALL)
    answer = await plane.ask()
    assert (answer.status, answer.json["code"]) == (500, "version_failed")
    assert list(plane.windows()) == ["canary"]


@pytest.mark.parametrize(
    ("result", "status", "code"),
    [
        (BOOM, 500, "version_failed"),
        (DEAD, 503, "version_unavailable"),
        (TritonError(Fault.UNREACHABLE, "refused"), 503, "serving_unreachable"),
        (TritonError(Fault.TIMEOUT, "late"), 504, "deadline_exceeded"),
        (Reply(200, None, b"{}"), 500, "version_failed"),
    ],
)
async def test_a_failure_of_stable_is_never_a_200(result, status, code):
    plane = Plane(lambda call: result)
    answer = await plane.ask()
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.headers["x-interlock-version"] == "1"
    assert plane.windows()["stable"].errors == 1


async def test_an_explicit_request_has_no_fallback():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    answer = await plane.ask("/v2/models/sums/versions/2/infer")
    assert answer.status == 500
    assert len(plane.triton.calls) == 1


async def test_stable_is_called_even_if_some_requests_fail():
    plane = Plane()
    for _ in range(5):
        assert (await plane.ask(payload=body([666, 0, 0, 0]))).status == 500
    assert (await plane.ask()).status == 200


async def test_a_dead_stable_is_refused_at_once():
    plane = Plane(lambda call: DEAD)
    for _ in range(2):
        await plane.ask()
    answer = await plane.ask()
    assert (answer.status, answer.json["code"]) == (503, "breaker_open")
    assert len(plane.triton.calls) == 2


async def test_a_full_queue_answers_503_with_retry_after():
    plane = Plane(None, batching=Batching(max_batch_size=4, max_queue_size=4))
    waits, refused = Wire(answer=plane.application), Wire(answer=plane.application)
    for wire in (waits, refused):
        wire.feed(request(INFER, body(*[ROW] * 3)))
    answer = Answer(refused.transport.written)
    assert (answer.status, answer.json["code"]) == (503, "queue_full")
    assert answer.headers["retry-after"] == "1"
    assert waits.transport.written == b""


async def test_infinity_in_plain_json_is_a_failure_of_the_version():
    plane = Plane()
    sums = await plane.ask(payload=body([3e38, 3e38, 0, 0]))
    assert b'"data":[Infinity]' in sums.body
    data = {"model": "sums", "data": [[3e38, 3e38, 0, 0]]}
    answer = await plane.ask("/predict", json.dumps(data).encode())
    assert answer.status == 500
    assert "holds NaN or infinity" in answer.json["error"]


async def test_a_canary_gets_three_quarters_of_the_time():
    plane = Plane(split=ALL)
    await plane.ask()
    assert plane.triton.timeouts[0] == pytest.approx(1.5, abs=0.1)


async def test_a_unit_is_exposed_once_to_its_variant_even_if_the_variant_fails():
    plane = Plane(by_version(v1=None, v2=BOOM), split=EXPERIMENT)
    for unit in ("a", "b", "c", "a"):
        await plane.ask(headers=f"x-unit-id: {unit}\r\n")
    plane.windows()
    expected = {(u, EXPERIMENT.variant_of(u).name) for u in ("a", "b", "c")}
    assert {(e.unit, e.variant) for e in plane.exposures} == expected
    assert len(plane.exposures) == 3
    assert {e.experiment for e in plane.exposures} == {"e1"}


async def test_a_request_without_a_unit_has_no_exposure():
    plane = Plane(split=EXPERIMENT)
    await plane.ask()
    (window,) = plane.windows().values()
    assert (window.anonymous, window.units, plane.exposures) == (1, 0, [])


async def test_a_new_table_serves_the_next_request_and_keeps_the_breakers():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    for _ in range(2):
        await plane.ask()
    plane.apply(2, split=msgspec.structs.replace(ALL, weight_bp=9_999))
    answer = await plane.ask(headers="x-unit-id: u1\r\n")
    assert answer.headers["x-interlock-generation"] == "2"
    assert answer.headers["x-interlock-fallback"] == "breaker_open"


async def test_a_request_in_progress_ends_under_its_table():
    plane = Plane(None)
    wire = Wire(answer=plane.application)
    wire.feed(request(INFER, body(ROW)))
    await asyncio.sleep(0.01)
    plane.apply(2, stable="2", split=None)
    plane.triton.finish(0)
    assert b"x-interlock-generation: 1\r\n" in wire.transport.written


async def test_a_client_that_hangs_up_affects_no_other():
    plane = Plane(None)
    stays, leaves = Wire(answer=plane.application), Wire(answer=plane.application)
    for wire in (leaves, stays):
        wire.feed(request(INFER, body(ROW)))
    await asyncio.sleep(0.01)
    leaves.connection.connection_lost(None)
    plane.triton.finish(0)
    assert stays.statuses == [200]
    assert leaves.transport.written == b""
    assert (await _asked_again(plane)).statuses == [200]


async def _asked_again(plane):
    plane.triton.answer = sums_reply
    wire = Wire(answer=plane.application)
    wire.feed(request(INFER, body(ROW)))
    await asyncio.sleep(0.01)
    return wire


async def test_a_version_of_weight_0_gets_nothing():
    plane = Plane(split=CanarySplit(id="r1", salt="s", version="2", weight_bp=0))
    for i in range(200):
        await plane.ask(headers=f"x-unit-id: u{i}\r\n" if i % 2 else "")
    assert all(b"/versions/1/" in call for call, _ in plane.triton.calls)
