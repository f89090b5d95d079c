"""The cache in the path of a request: which answers come from it, what is stored and counted."""

from __future__ import annotations

import asyncio
import hashlib
import struct

import msgspec
import orjson
import pytest

from contract.routing import Cache as Settings
from contract.routing import Tenant, VersionRoute
from dataplane.cache.metrics import add_cache
from dataplane.metrics import Page
from dataplane.triton import Reply
from tests.dataplane.cache.worlds import INFER, ON, ROW, Plane
from tests.dataplane.worlds import DEAD, EXPERIMENT, body, canary, model, sums_reply, table

ALL = canary(10_000)
EXPLICIT_2 = "/v2/models/sums/versions/2/infer"
BOOM = Reply(500, None, b'{"error":"boom"}')


def only(version, result):
    """Answer `result` for one version, and correctly for the other."""

    def answer(call):
        return result if b"/versions/%d/" % version in call else sums_reply(call)

    return answer


def binary(**parameters):
    """Return a request with its tensor as binary data, and its header."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    tensor["parameters"] = {"binary_data_size": 16}
    head = orjson.dumps({"inputs": [tensor], **parameters})
    return head + struct.pack("<4f", *ROW), f"inference-header-content-length: {len(head)}\r\n"


PLAIN = orjson.dumps({"model": "sums", "data": [ROW], "request_id": "r"})
FORMS = {
    "json": (body(ROW), "", INFER),
    "id": (body(ROW, id="mine"), "", INFER),
    "one output": (body(ROW, outputs=[{"name": "label"}]), "", INFER),
    "turned round": (body(ROW, outputs=[{"name": "label"}, {"name": "sum"}]), "", INFER),
    "binary out": (body(ROW, parameters={"binary_data_output": True}), "", INFER),
    "binary in": (*binary(), INFER),
    "binary both": (*binary(parameters={"binary_data_output": True}, id="x"), INFER),
    "mixed": (body(ROW, outputs=[{"name": "sum", "parameters": {"binary_data": True}},
                                 {"name": "label"}]), "", INFER),
    "plain": (PLAIN, "", "/predict"),
    "two rows": (body(ROW, [0.5, 0, 0, 0]), "", INFER),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
async def test_a_cached_answer_equals_a_computed_one(form):
    uncached, cached = Plane(cache=None), Plane()
    expected = await uncached.ask(*FORMS[form])
    answers = [await cached.ask(*FORMS[form]) for _ in range(3)]
    assert [answer.state for answer in answers] == ["miss", "l1", "l1"]
    for answer in answers:
        assert (answer.status, answer.body) == (200, expected.body)
        lengths = [a.headers.get("inference-header-content-length") for a in (answer, expected)]
        assert lengths[0] == lengths[1]
        assert answer.headers["content-type"] == expected.headers["content-type"]
    assert cached.calls == 1


@pytest.mark.parametrize("first", FORMS)
async def test_each_form_gets_its_own_bytes_in_any_order(first):
    uncached, cached = Plane(cache=None), Plane()
    await cached.ask(*FORMS[first])
    for form, request in FORMS.items():
        expected = await uncached.ask(*request)
        answer = await cached.ask(*request)
        assert answer.body == expected.body, form
        assert answer.headers["content-type"] == expected.headers["content-type"]


async def test_json_and_binary_and_plain_share_an_entry():
    plane = Plane()
    names = ("json", "id", "binary out", "binary in", "binary both", "mixed", "plain")
    states = [await plane.state(*FORMS[name]) for name in names]
    assert states == ["miss"] + ["l1"] * 6
    assert plane.calls == 1


async def test_a_disabled_cache_is_bypassed_and_empty():
    plane = Plane(cache=None)
    assert [await plane.state() for _ in range(2)] == ["bypass", "bypass"]
    assert (plane.calls, len(plane.cache.local)) == (2, 0)


async def test_without_a_cache_in_the_process_answers_are_computed():
    plane = Plane()
    plane.serving.cache = None
    plane.apply(2)
    assert await plane.state() == "bypass"


async def test_other_content_is_a_miss():
    plane = Plane()
    payloads = [body(ROW), body(ROW, ROW), body([1, 2, 3, 5]), body(ROW, parameters={"mode": 1})]
    assert [await plane.state(payload) for payload in payloads] == ["miss"] * 4
    assert [await plane.state(payload) for payload in payloads] == ["l1"] * 4


async def test_an_answer_expires_and_a_shorter_time_takes_effect_at_once():
    plane = Plane(cache=Settings(ttl_s=3600))
    await plane.ask()
    plane.apply(2, cache=Settings(ttl_s=0))
    await asyncio.sleep(0.001)
    assert await plane.state() == "miss"


@pytest.mark.parametrize(
    ("header", "state", "afterwards"),
    [
        ("no-cache", "bypass", "l1"),
        ("max-age=0, No-Cache", "bypass", "l1"),
        ("no-store", "bypass", "miss"),
        ("no-cache, no-store", "bypass", "miss"),
        ("max-age=60", "miss", "l1"),
    ],
)
async def test_the_client_may_bypass_reading_or_both(header, state, afterwards):
    plane = Plane()
    assert await plane.state(headers=f"Cache-Control: {header}\r\n") == state
    assert await plane.state() == afterwards


async def test_no_cache_is_computed_again_despite_a_cached_answer():
    plane = Plane()
    await plane.ask()
    assert await plane.state(headers="cache-control: no-cache\r\n") == "bypass"
    assert plane.calls == 2


# --- versions ------------------------------------------------------------------------------------


async def test_versions_never_share_an_answer_and_variants_of_a_version_do():
    plane = Plane(split=ALL)
    assert (await plane.ask()).headers["x-interlock-version"] == "2"
    explicit = await plane.ask(target=EXPLICIT_2)
    assert (explicit.state, explicit.headers["x-interlock-variant"]) == ("l1", "explicit")
    assert await plane.state(target="/v2/models/sums/versions/1/infer") == "miss"


async def test_routing_happens_for_each_request():
    plane = Plane(split=canary(5_000))
    for i in range(60):
        await plane.ask(headers=f"x-unit-id: u{i}\r\n")
    answers = [await plane.ask(headers=f"x-unit-id: u{i}\r\n") for i in range(60)]
    assert {answer.headers["x-interlock-version"] for answer in answers} == {"1", "2"}
    for answer in answers:
        assert answer.json["model_version"] == answer.headers["x-interlock-version"]
    assert plane.calls == 2


async def test_answers_outlive_a_table_that_does_not_change_their_version():
    plane = Plane()
    await plane.ask()
    plane.apply(2, split=canary(1))
    answer = await plane.ask(headers="x-unit-id: u1\r\n")
    assert (answer.state, answer.headers["x-interlock-generation"]) == ("l1", "2")


async def test_a_version_of_the_same_number_elsewhere_starts_empty():
    plane = Plane()
    await plane.ask()
    moved = VersionRoute(cluster="main", triton_model="sums.1", triton_version="9")
    plane.apply(2, versions={**model().versions, "1": moved})
    assert await plane.state() == "miss"


async def test_a_version_registered_again_under_the_same_number_starts_empty():
    plane = Plane()
    await plane.ask()
    fresh = msgspec.structs.replace(model().versions["1"], created_at_ms=1)
    plane.apply(2, versions={**model().versions, "1": fresh})
    assert await plane.state() == "miss"


async def test_a_version_that_returns_at_once_starts_empty():
    plane = Plane(split=ALL)
    await plane.ask()
    plane.apply(2, versions={"1": model().versions["1"]})
    plane.apply(3)
    assert [await plane.state(target=EXPLICIT_2) for _ in range(2)] == ["miss", "l1"]


async def test_answers_of_a_removed_version_are_dropped():
    plane = Plane(split=ALL)
    await plane.ask()
    await plane.ask(target="/v2/models/sums/versions/1/infer")
    assert len(plane.cache.local) == 2
    plane.apply(2, versions={"1": model().versions["1"]})
    await asyncio.sleep(0.01)
    assert len(plane.cache.local) == 1
    plane.apply(3)
    assert await plane.state(target=EXPLICIT_2) == "miss"


async def test_an_answer_of_a_version_removed_meanwhile_is_not_cached():
    plane = Plane(None, split=ALL)
    wire = plane.send()
    await asyncio.sleep(0.01)
    plane.apply(2, versions={"1": model().versions["1"]})
    plane.triton.finish(0)
    assert wire.statuses == [200]
    assert len(plane.cache.local) == 0


async def test_tenants_never_share_an_answer():
    plane = Plane()
    tenants = {n: Tenant(keys=(hashlib.sha256(n.encode()).hexdigest(),)) for n in ("a", "b")}
    document = msgspec.structs.replace(table(model(cache=ON), 2), tenants=tenants)
    plane.serving.apply(document)
    for expected in ("miss", "l1"):
        for tenant in ("a", "b"):
            assert await plane.state(headers=f"x-api-key: {tenant}\r\n") == expected
    assert await plane.state() == "miss"


# --- failures ------------------------------------------------------------------------------------


async def test_a_hit_is_answered_while_the_breaker_of_its_version_is_open():
    plane = Plane(split=ALL)
    await plane.ask()
    plane.triton.answer = only(2, DEAD)
    for i in range(4):
        await plane.ask(body([i, 0, 0, 0]))
    assert plane.serving.trips
    answer = await plane.ask()
    assert (answer.state, answer.headers["x-interlock-version"]) == ("l1", "2")


async def test_an_answer_of_stable_is_never_cached_as_the_canarys():
    plane = Plane(only(2, BOOM), split=ALL)
    answer = await plane.ask()
    assert (answer.headers["x-interlock-fallback"], answer.state) == ("failed", "bypass")
    plane.triton.answer = sums_reply
    again = await plane.ask()
    assert (again.state, again.headers["x-interlock-version"]) == ("miss", "2")


@pytest.mark.parametrize("result", [BOOM, DEAD, Reply(400, None, b'{"error":"no"}')])
async def test_a_failure_is_never_cached(result):
    plane = Plane(lambda call: result)
    assert (await plane.ask()).status >= 400
    plane.triton.answer = sums_reply
    assert (await plane.ask()).state == "miss"
    assert len(plane.cache.flights) == 0


async def test_an_answer_without_a_json_form_fails_as_it_does_uncached():
    plane, uncached = Plane(), Plane(cache=None)
    payload = body([3e38, 3e38, 0, 0])
    expected = await uncached.ask(payload)
    assert (await plane.ask(payload)).body == expected.body
    assert (await plane.ask(payload)).state == "l1"
    plain = orjson.dumps({"model": "sums", "data": [[3e38, 3e38, 0, 0]], "request_id": "r"})
    answers = [await each.ask(plain, target="/predict") for each in (plane, uncached)]
    assert [answer.status for answer in answers] == [500, 500]
    assert answers[0].json == answers[1].json


async def test_a_bad_request_is_refused_with_the_cache_on():
    plane = Plane()
    assert [(await plane.ask(b"{")).status for _ in range(2)] == [400, 400]
    await plane.ask(PLAIN, target="/predict")
    await plane.ask(PLAIN, target="/predict")
    assert (await plane.ask(PLAIN)).status == 400


# --- the memo ------------------------------------------------------------------------------------


async def test_only_requests_that_hit_are_remembered():
    plane = Plane()
    await plane.ask()
    assert len(plane.cache.memo) == 0
    await plane.ask()
    assert len(plane.cache.memo) == 1
    plane.apply(2)
    assert len(plane.cache.memo) == 0
    assert await plane.state() == "l1"


async def test_the_same_bytes_with_another_json_length_are_parsed_again():
    plane = Plane()
    payload, header = binary()
    for _ in range(3):
        assert (await plane.ask(payload, header)).status == 200
    assert (await plane.ask(payload)).status == 400
    assert (await plane.ask(payload, "inference-header-content-length: 5\r\n")).status == 400


async def test_a_remembered_request_keeps_its_unit_and_its_id():
    plane = Plane(split=EXPERIMENT)
    payload = body(ROW, id="mine", parameters={"unit_id": "a"})
    answers = [await plane.ask(payload) for _ in range(3)]
    assert [answer.json["id"] for answer in answers] == ["mine"] * 3
    assert {answer.headers["x-interlock-variant"] for answer in answers} == {
        EXPERIMENT.variant_of("a").name
    }


# --- counts --------------------------------------------------------------------------------------


async def test_hits_are_counted_separately_from_the_version():
    plane = Plane()
    for _ in range(4):
        await plane.ask(headers="x-unit-id: u1\r\n")
    window = plane.windows()["stable"]
    assert (window.requests, window.units, window.cache_hits) == (1, 1, 3)
    assert sum(window.latency.values()) == 1
    ((_, _, stats, _),) = plane.serving.stats()
    assert stats.predictions == {"success": 1, "cached": 3}
    assert (sum(stats.latency.counts), stats.cache_hits, stats.cache_misses) == (1, {"l1": 3}, 1)


async def test_a_hit_is_an_exposure():
    plane = Plane(split=EXPERIMENT)
    units = [f"u{i}" for i in range(8)]
    for unit in units:
        await plane.ask(headers=f"x-unit-id: {unit}\r\n")
    windows = plane.windows()
    assert sum(window.cache_hits for window in windows.values()) == 6
    assert [(e.unit, e.variant) for e in plane.exposures] == [
        (unit, EXPERIMENT.variant_of(unit).name) for unit in units
    ]


async def test_a_window_of_hits_alone_is_sent():
    plane = Plane()
    await plane.ask()
    plane.windows()
    await plane.ask()
    window = plane.windows()["stable"]
    assert (window.requests, window.cache_hits, window.latency) == (0, 1, {})
    assert window.started_at_ms > 0
    assert plane.windows() == {}


async def test_the_metrics_page_shows_the_cache():
    plane = Plane()
    for _ in range(3):
        await plane.ask()
    page = Page()
    add_cache(
        page, plane.cache, [((("model_name", n),), s) for n, _, s, _ in plane.serving.stats()]
    )
    text = page.text().decode()
    assert 'interlock_cache_hits_total{model_name="sums",tier="l1"} 2' in text
    assert 'interlock_cache_misses_total{model_name="sums"} 1' in text
    assert "interlock_cache_entries 1" in text
    assert f'interlock_cache_bytes{{kind="answers"}} {plane.cache.local.bytes}' in text
    assert "interlock_cache_evictions_total 0" in text
    assert "shared" not in text


class OtherCaller:
    """A caller with its own protocol, like gRPC."""

    def __init__(self):
        self.headers = {}
        self.tenancy = self.job = None
        self.got = []

    def respond(self, status, body, headers):
        self.got.append((body, b"x-interlock-cache: l1" in headers))

    def refuse(self, refusal, headers):
        raise refusal


async def test_another_protocol_shares_the_answers_in_its_own_form():
    plane, caller = Plane(), OtherCaller()
    await plane.ask()

    def form(model, lane, request, outputs, start):
        return lane.headers, outputs[0].raw(start, start + request.rows)

    for _ in range(2):
        arguments = (
            caller,
            body(ROW),
            "sums",
            None,
            lambda codec, text: codec.read_infer(text),
            form,
        )
        plane.predictor.predict(*arguments)
    assert caller.got == [(struct.pack("<f", 10.0), True)] * 2
    assert (plane.calls, len(plane.cache.memo)) == (1, 0)
