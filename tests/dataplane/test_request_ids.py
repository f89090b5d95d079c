"""Each answer has an id that identifies it: outcomes are joined by it."""

import time

import pytest

from contract.request_ids import parse_request_id
from contract.routing import CanarySplit
from tests.dataplane.test_predict import BOOM, ROW, Plane, body, by_version

SPLIT = CanarySplit(id="r1", salt="s", version="2", weight_bp=10_000, interval_s=10)
HEADER = "x-interlock-request-id"
UNIT = "x-unit-id: u1\r\n"


def split(**changes):
    return CanarySplit(**{name: getattr(SPLIT, name) for name in SPLIT.__struct_fields__} | changes)


async def test_an_answer_has_an_id_with_its_version_and_time():
    plane = Plane()
    before_ms = int(time.time() * 1000)
    answers = [await plane.ask(headers=UNIT) for _ in range(2)]

    texts = [answer.headers[HEADER] for answer in answers]
    assert texts[0] != texts[1]
    parsed = parse_request_id(texts[0])
    # Without a split there are no exposures, and the id has no unit.
    assert (parsed.model, parsed.version, parsed.unit) == ("sums", "1", "")
    assert before_ms <= parsed.at_ms <= time.time() * 1000 + 1


@pytest.mark.parametrize(("exposures", "unit"), [(True, "u1"), (False, "")])
async def test_with_exposures_the_id_has_the_unit(exposures, unit):
    answer = await Plane(split=split(exposures=exposures)).ask(headers=UNIT)
    parsed = parse_request_id(answer.headers[HEADER])
    assert (parsed.version, parsed.unit) == ("2", unit)


async def test_the_id_of_a_fallback_names_stable():
    plane = Plane(by_version(v2=BOOM), split=split(exposures=True))
    answer = await plane.ask(headers=UNIT)
    parsed = parse_request_id(answer.headers[HEADER])
    assert (parsed.version, parsed.unit) == ("1", "u1")


async def test_a_plain_answer_has_the_id_in_its_body_unless_the_client_sent_one():
    plane = Plane()
    payload = b'{"model":"sums","data":[[1,2,3,4]]%b}'
    own = await plane.ask("/predict", payload % b"")
    assert own.json["request_id"] == own.headers[HEADER]
    answer = await plane.ask("/predict", payload % b',"request_id":"mine"')
    assert answer.json["request_id"] == "mine"
    assert parse_request_id(answer.headers[HEADER]).model == "sums"


async def test_the_clients_own_id_of_a_request_stays_in_its_body():
    answer = await Plane().ask(payload=body(ROW, id="mine"))
    assert answer.json["id"] == "mine"
    assert parse_request_id(answer.headers[HEADER]).version == "1"


async def test_a_refusal_has_no_id():
    answer = await Plane(by_version(v1=BOOM)).ask()
    assert answer.status == 500
    assert HEADER not in answer.headers
