"""Keys, quotas and concurrency, alone and on the way of a request."""

import asyncio
import hashlib

import msgspec
import pytest

from contract.routing import Cache as CacheSettings
from contract.routing import Tenant
from dataplane.admission import ANONYMOUS, Admission, read_timeout_s
from dataplane.cache import Cache
from dataplane.errors import Refusal
from dataplane.fair_queue import HIGH, NORMAL
from dataplane.metrics import Page
from dataplane.metrics_page import _add_sheds
from tests.dataplane.test_predict import ALL, BOOM, INFER, ROW, Plane
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body, model, sums_reply, table

KEY = "secret-of-a"
BEARER = f"authorization: Bearer {KEY}\r\n"


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def tenants(**limits):
    return {"a": Tenant(keys=(digest(KEY),), **limits)}


def with_tenants(generation=1, key_required=True, route=None, **limits):
    changes = {"tenants": tenants(**limits), "key_required": key_required}
    return msgspec.structs.replace(table(route or model(), generation), **changes)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Request:
    def __init__(self, **headers):
        self.headers = {name.replace("_", "-").encode(): v for name, v in headers.items()}
        self.tenancy = None


def admission(clock=None, share=1, **limits):
    made = Admission(share, clock or Clock())
    made.apply(with_tenants(**limits))
    return made


def refusal(made, **headers):
    with pytest.raises(Refusal) as caught:
        made.admit(Request(**headers))
    return caught.value.code


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": b"Bearer secret-of-a"},
        {"authorization": b"bearer  secret-of-a"},
        {"x_api_key": b"secret-of-a"},
        {"x_api_key": b"secret-of-a", "authorization": b"Bearer of-somebody-else"},
    ],
)
def test_a_key_names_its_tenant(headers):
    made = admission(priority="high")
    for _ in range(2):
        tenancy = made.admit(Request(**headers))
        assert (tenancy.name, tenancy.priority) == ("a", HIGH)


@pytest.mark.parametrize(
    "headers",
    [{"x_api_key": b"wrong"}, {"x_api_key": b""}, {"authorization": b"Bearer wrong"}],
)
@pytest.mark.parametrize("key_required", [True, False])
def test_an_unknown_key_is_refused_whether_keys_are_required_or_not(headers, key_required):
    assert refusal(admission(key_required=key_required), **headers) == "unauthenticated"


@pytest.mark.parametrize("headers", [{}, {"authorization": b"Basic eDp5"}])
def test_a_request_without_a_key_is_refused_only_where_keys_are_required(headers):
    assert refusal(admission(), **headers) == "unauthenticated"
    nobody = admission(key_required=False).admit(Request(**headers))
    assert (nobody.name, nobody.priority, nobody.limited) == ("", NORMAL, False)


def test_without_tenants_credentials_are_not_ours():
    made = Admission()
    made.apply(table(model()))
    assert made.admit(Request(authorization=b"Bearer jwt-of-a-mesh")) is ANONYMOUS


def test_a_key_that_the_next_table_lacks_is_refused():
    made = admission()
    made.admit(Request(x_api_key=KEY.encode()))
    made.apply(msgspec.structs.replace(with_tenants(2), tenants={"a": Tenant(keys=())}))
    assert refusal(made, x_api_key=KEY.encode()) == "unauthenticated"


def drain(made, most=100):
    """Return how many requests pass at once, and what the next one hears."""
    for passed in range(most):
        try:
            made.admit(Request(x_api_key=KEY.encode())).leave()
        except Refusal as refused:
            return passed, refused
    raise AssertionError("no limit")


def test_a_quota_lets_a_burst_pass_and_then_its_rate():
    clock = Clock()
    made = admission(clock, requests_per_s=0.5, burst=3)
    passed, refused = drain(made)
    assert (passed, refused.status, refused.code) == (3, 429, "quota_exceeded")
    assert refused.retry_after_s == 2
    clock.now += 2.0
    assert drain(made)[0] == 1
    clock.now += 1_000
    assert drain(made)[0] == 3
    assert made.sheds == {"quota_exceeded": 3}


@pytest.mark.parametrize(("rate", "passes"), [(7.0, 7), (0.1, 1)])
def test_the_burst_is_what_a_second_brings_unless_told_otherwise(rate, passes):
    assert drain(admission(requests_per_s=rate))[0] == passes


def test_each_of_several_processes_enforces_its_share():
    made = admission(share=4, requests_per_s=40, burst=20, concurrency_max=10)
    assert drain(made)[0] == 5
    clock = Clock()
    made = admission(clock, share=4, requests_per_s=4, concurrency_max=10)
    assert drain(made)[0] == 1
    clock.now += 1.0
    assert drain(made)[0] == 1


def test_a_table_with_the_same_limits_leaves_level_and_concurrency():
    clock = Clock()
    made = admission(clock, requests_per_s=1, burst=5, concurrency_max=2)
    under_way = made.admit(Request(x_api_key=KEY.encode()))
    drain(made)
    limits = {"requests_per_s": 1, "burst": 5, "concurrency_max": 2, "priority": "low"}
    made.apply(with_tenants(2, **limits))
    assert drain(made)[0] == 0
    assert under_way.in_flight == 1
    clock.now += 2
    assert drain(made)[0] == 2


def test_a_smaller_burst_takes_what_is_above_it():
    made = admission(requests_per_s=1, burst=50)
    made.admit(Request(x_api_key=KEY.encode()))
    made.apply(with_tenants(2, requests_per_s=1, burst=5))
    assert drain(made)[0] == 5


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 2.0), (b"150", 0.15), (b"99999", 2.0), (b"1", 0.001)]
)
def test_the_shorter_of_the_clients_and_the_models_time_counts(value, expected):
    headers = {} if value is None else {b"x-interlock-timeout-ms": value}
    assert read_timeout_s(headers, 2.0) == expected


@pytest.mark.parametrize("value", [b"0", b"-1", b"1.5", b"", b"1s", b"9" * 40, "²".encode()])
def test_a_timeout_that_is_none_is_refused(value):
    with pytest.raises(Refusal, match="positive whole number"):
        read_timeout_s({b"x-interlock-timeout-ms": value}, 2.0)


# --- on the way of a request ---------------------------------------------------------------------


def plane(answer=sums_reply, route=None, **limits):
    made = Plane(answer)
    made.serving.apply(with_tenants(2, route=route, **limits))
    return made


@pytest.mark.parametrize(
    ("target", "payload"),
    [(INFER, None), ("/predict", b'{"model":"sums","data":[[1,2,3,4]]}'), ("/outcomes", b"[]")],
)
async def test_predictions_and_outcomes_need_a_key(target, payload):
    made = plane()
    answer = await made.ask(target, payload)
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert made.triton.calls == []
    assert (await made.ask(target, payload, headers=BEARER)).status in (200, 400)


async def test_health_and_metadata_need_none():
    wire = Wire(answer=plane().application)
    for target in ("/v2/health/live", "/v2", "/v2/models/sums", "/v2/models/sums/ready"):
        wire.feed(request(target, method="GET"))
    assert wire.statuses == [200, 200, 200, 200]


async def test_a_tenant_over_its_quota_hears_when_to_come_back():
    made = plane(requests_per_s=0.25, burst=1)
    assert (await made.ask(headers=BEARER)).status == 200
    answer = await made.ask(headers=BEARER)
    assert (answer.status, answer.json["code"]) == (429, "quota_exceeded")
    assert answer.headers["retry-after"] == "4"


async def test_a_tenant_has_no_more_under_way_than_it_may():
    made = plane(None, concurrency_max=2)
    wires = [Wire(answer=made.application) for _ in range(3)]
    for wire in wires:
        wire.feed(request(INFER, body(ROW), BEARER))
    await asyncio.sleep(0.01)
    assert [wire.statuses for wire in wires] == [[], [], [429]]
    assert b'"too_many_concurrent"' in wires[2].transport.written
    made.triton.finish(0)
    assert [wire.statuses for wire in wires[:2]] == [[200], [200]]
    assert in_flight(made) == 0


def in_flight(made):
    return made.serving.admission.admit(Request(x_api_key=KEY.encode())).in_flight - 1


@pytest.mark.parametrize(
    ("answer", "payload", "headers", "status"),
    [
        (sums_reply, body(ROW), "", 200),
        (lambda call: BOOM, body(ROW), "", 500),
        (sums_reply, b"{", "", 400),
        (sums_reply, body(ROW), "x-interlock-timeout-ms: soon\r\n", 400),
    ],
)
async def test_the_place_comes_back_however_a_request_ends(answer, payload, headers, status):
    made = plane(answer, model(split=ALL), concurrency_max=1)
    for _ in range(3):
        assert (await made.ask(payload=payload, headers=BEARER + headers)).status == status
    assert in_flight(made) == 0


async def test_the_place_comes_back_when_a_handler_breaks(monkeypatch):
    made = plane(concurrency_max=1)
    monkeypatch.setattr(made.serving, "model", lambda name: 1 / 0)
    for _ in range(3):
        assert (await made.ask(headers=BEARER)).status == 500
    assert in_flight(made) == 0


async def test_the_place_of_a_client_that_hung_up_comes_back_once_its_work_is_done():
    made = plane(None, concurrency_max=1)
    wire = Wire(answer=made.application)
    wire.feed(request(INFER, body(ROW), BEARER))
    await asyncio.sleep(0.01)
    wire.connection.connection_lost(None)
    assert (await made.ask(headers=BEARER)).status == 429
    made.triton.finish(0)
    assert in_flight(made) == 0


async def test_keys_are_never_logged(caplog):
    caplog.set_level(0)
    made = plane(lambda call: BOOM, requests_per_s=1)
    for headers in (BEARER, BEARER, "x-api-key: wrong-key\r\n"):
        await made.ask(headers=headers)
    assert KEY not in caplog.text
    assert "wrong-key" not in caplog.text


async def test_tenants_never_share_a_cached_answer():
    made = Plane()
    loop = asyncio.get_running_loop()
    made.serving.cache = Cache(loop, None, 1_000, 10_000_000)
    both = {name: Tenant(keys=(digest(name),)) for name in "ab"}
    route = model(cache=CacheSettings(ttl_s=60))
    made.serving.apply(msgspec.structs.replace(table(route, 2), tenants=both))
    states = []
    for key in ("a", "a", "b"):
        answer = await made.ask(headers=f"x-api-key: {key}\r\n")
        states.append(answer.headers["x-interlock-cache"])
    assert states == ["miss", "l1", "miss"]


def test_sheds_are_shown_by_reason():
    page = Page()
    _add_sheds(page, {"overloaded": 2, "quota_exceeded": 1})
    assert b'interlock_sheds_total{reason="overloaded"} 2' in page.text()
