"""Keys, quotas and concurrency, alone and in the path of a request."""

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
    limiter = Admission(share, clock or Clock())
    limiter.apply(with_tenants(**limits))
    return limiter


def refusal(limiter, **headers):
    with pytest.raises(Refusal) as caught:
        limiter.admit(Request(**headers))
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
    limiter = admission(priority="high")
    for _ in range(2):
        tenancy = limiter.admit(Request(**headers))
        assert (tenancy.name, tenancy.priority) == ("a", HIGH)


@pytest.mark.parametrize(
    "headers",
    [{"x_api_key": b"wrong"}, {"x_api_key": b""}, {"authorization": b"Bearer wrong"}],
)
@pytest.mark.parametrize("key_required", [True, False])
def test_an_unknown_key_is_refused_even_if_no_key_is_required(headers, key_required):
    assert refusal(admission(key_required=key_required), **headers) == "unauthenticated"


@pytest.mark.parametrize("headers", [{}, {"authorization": b"Basic eDp5"}])
def test_a_request_without_a_key_is_refused_only_if_keys_are_required(headers):
    assert refusal(admission(), **headers) == "unauthenticated"
    nobody = admission(key_required=False).admit(Request(**headers))
    assert (nobody.name, nobody.priority, nobody.limited) == ("", NORMAL, False)


def test_without_tenants_credentials_are_ignored():
    limiter = Admission()
    limiter.apply(table(model()))
    assert limiter.admit(Request(authorization=b"Bearer jwt-of-a-mesh")) is ANONYMOUS


def test_a_key_that_the_next_table_lacks_is_refused():
    limiter = admission()
    limiter.admit(Request(x_api_key=KEY.encode()))
    limiter.apply(msgspec.structs.replace(with_tenants(2), tenants={"a": Tenant(keys=())}))
    assert refusal(limiter, x_api_key=KEY.encode()) == "unauthenticated"


def drain(limiter, limit=100):
    """Return how many requests pass at once, and the refusal of the next one."""
    for passed in range(limit):
        try:
            limiter.admit(Request(x_api_key=KEY.encode())).leave()
        except Refusal as refused:
            return passed, refused
    raise AssertionError("no limit")


def test_a_quota_lets_a_burst_pass_and_then_its_rate():
    clock = Clock()
    limiter = admission(clock, requests_per_s=0.5, burst=3)
    passed, refused = drain(limiter)
    assert (passed, refused.status, refused.code) == (3, 429, "quota_exceeded")
    assert refused.retry_after_s == 2
    clock.now += 2.0
    assert drain(limiter)[0] == 1
    clock.now += 1_000
    assert drain(limiter)[0] == 3
    assert limiter.sheds == {"quota_exceeded": 3}


@pytest.mark.parametrize(("rate", "passes"), [(7.0, 7), (0.1, 1)])
def test_the_default_burst_is_the_rate_of_a_second(rate, passes):
    assert drain(admission(requests_per_s=rate))[0] == passes


def test_each_of_several_processes_enforces_its_share():
    limiter = admission(share=4, requests_per_s=40, burst=20, concurrency_max=10)
    assert drain(limiter)[0] == 5
    clock = Clock()
    limiter = admission(clock, share=4, requests_per_s=4, concurrency_max=10)
    assert drain(limiter)[0] == 1
    clock.now += 1.0
    assert drain(limiter)[0] == 1


def test_a_table_with_the_same_limits_keeps_level_and_concurrency():
    clock = Clock()
    limiter = admission(clock, requests_per_s=1, burst=5, concurrency_max=2)
    under_way = limiter.admit(Request(x_api_key=KEY.encode()))
    drain(limiter)
    limits = {"requests_per_s": 1, "burst": 5, "concurrency_max": 2, "priority": "low"}
    limiter.apply(with_tenants(2, **limits))
    assert drain(limiter)[0] == 0
    assert under_way.in_flight == 1
    clock.now += 2
    assert drain(limiter)[0] == 2


def test_a_smaller_burst_cuts_the_level():
    limiter = admission(requests_per_s=1, burst=50)
    limiter.admit(Request(x_api_key=KEY.encode()))
    limiter.apply(with_tenants(2, requests_per_s=1, burst=5))
    assert drain(limiter)[0] == 5


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 2.0), (b"150", 0.15), (b"99999", 2.0), (b"1", 0.001)]
)
def test_the_shorter_timeout_of_client_and_model_counts(value, expected):
    headers = {} if value is None else {b"x-interlock-timeout-ms": value}
    assert read_timeout_s(headers, 2.0) == expected


@pytest.mark.parametrize("value", [b"0", b"-1", b"1.5", b"", b"1s", b"9" * 40, "²".encode()])
def test_an_invalid_timeout_is_refused(value):
    with pytest.raises(Refusal, match="positive whole number"):
        read_timeout_s({b"x-interlock-timeout-ms": value}, 2.0)


# --- in the path of a request --------------------------------------------------------------------


def plane(answer=sums_reply, route=None, **limits):
    server = Plane(answer)
    server.serving.apply(with_tenants(2, route=route, **limits))
    return server


@pytest.mark.parametrize(
    ("target", "payload"),
    [(INFER, None), ("/predict", b'{"model":"sums","data":[[1,2,3,4]]}'), ("/outcomes", b"[]")],
)
async def test_predictions_and_outcomes_need_a_key(target, payload):
    server = plane()
    answer = await server.ask(target, payload)
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert server.triton.calls == []
    assert (await server.ask(target, payload, headers=BEARER)).status in (200, 400)


async def test_health_and_metadata_need_no_key():
    wire = Wire(answer=plane().application)
    for target in ("/v2/health/live", "/v2", "/v2/models/sums", "/v2/models/sums/ready"):
        wire.feed(request(target, method="GET"))
    assert wire.statuses == [200, 200, 200, 200]


async def test_a_tenant_over_its_quota_gets_retry_after():
    server = plane(requests_per_s=0.25, burst=1)
    assert (await server.ask(headers=BEARER)).status == 200
    answer = await server.ask(headers=BEARER)
    assert (answer.status, answer.json["code"]) == (429, "quota_exceeded")
    assert answer.headers["retry-after"] == "4"


async def test_the_concurrency_of_a_tenant_is_limited():
    server = plane(None, concurrency_max=2)
    wires = [Wire(answer=server.application) for _ in range(3)]
    for wire in wires:
        wire.feed(request(INFER, body(ROW), BEARER))
    await asyncio.sleep(0.01)
    assert [wire.statuses for wire in wires] == [[], [], [429]]
    assert b'"too_many_concurrent"' in wires[2].transport.written
    server.triton.finish(0)
    assert [wire.statuses for wire in wires[:2]] == [[200], [200]]
    assert in_flight(server) == 0


def in_flight(server):
    return server.serving.admission.admit(Request(x_api_key=KEY.encode())).in_flight - 1


@pytest.mark.parametrize(
    ("answer", "payload", "headers", "status"),
    [
        (sums_reply, body(ROW), "", 200),
        (lambda call: BOOM, body(ROW), "", 500),
        (sums_reply, b"{", "", 400),
        (sums_reply, body(ROW), "x-interlock-timeout-ms: soon\r\n", 400),
    ],
)
async def test_the_slot_is_released_however_a_request_ends(answer, payload, headers, status):
    server = plane(answer, model(split=ALL), concurrency_max=1)
    for _ in range(3):
        assert (await server.ask(payload=payload, headers=BEARER + headers)).status == status
    assert in_flight(server) == 0


async def test_the_slot_is_released_when_a_handler_raises(monkeypatch):
    server = plane(concurrency_max=1)
    monkeypatch.setattr(server.serving, "model", lambda name: 1 / 0)
    for _ in range(3):
        assert (await server.ask(headers=BEARER)).status == 500
    assert in_flight(server) == 0


async def test_the_slot_of_a_client_that_hung_up_is_released_after_its_work():
    server = plane(None, concurrency_max=1)
    wire = Wire(answer=server.application)
    wire.feed(request(INFER, body(ROW), BEARER))
    await asyncio.sleep(0.01)
    wire.connection.connection_lost(None)
    assert (await server.ask(headers=BEARER)).status == 429
    server.triton.finish(0)
    assert in_flight(server) == 0


async def test_keys_are_never_logged(caplog):
    caplog.set_level(0)
    server = plane(lambda call: BOOM, requests_per_s=1)
    for headers in (BEARER, BEARER, "x-api-key: wrong-key\r\n"):
        await server.ask(headers=headers)
    assert KEY not in caplog.text
    assert "wrong-key" not in caplog.text


async def test_tenants_never_share_a_cached_answer():
    server = Plane()
    loop = asyncio.get_running_loop()
    server.serving.cache = Cache(loop, None, 1_000, 10_000_000)
    both = {name: Tenant(keys=(digest(name),)) for name in "ab"}
    route = model(cache=CacheSettings(ttl_s=60))
    server.serving.apply(msgspec.structs.replace(table(route, 2), tenants=both))
    states = []
    for key in ("a", "a", "b"):
        answer = await server.ask(headers=f"x-api-key: {key}\r\n")
        states.append(answer.headers["x-interlock-cache"])
    assert states == ["miss", "l1", "miss"]


def test_sheds_are_shown_by_reason():
    page = Page()
    _add_sheds(page, {"overloaded": 2, "quota_exceeded": 1})
    assert b'interlock_sheds_total{reason="overloaded"} 2' in page.text()
