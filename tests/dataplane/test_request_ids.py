"""Each answer has an id that says whose it is: outcomes are joined by it."""

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


async def test_an_answer_has_an_id_of_its_own_that_names_its_version_and_instant():
    plane = Plane()
    before_ms = int(time.time() * 1000)
    answers = [await plane.ask(headers=UNIT) for _ in range(2)]

    texts = [answer.headers[HEADER] for answer in answers]
    assert texts[0] != texts[1]
    found = parse_request_id(texts[0])
    # Without a split nobody is exposed, and the unit is none of the id's business.
    assert (found.model, found.version, found.unit) == ("sums", "1", "")
    assert before_ms <= found.at_ms <= time.time() * 1000 + 1


@pytest.mark.parametrize(("exposures", "unit"), [(True, "u1"), (False, "")])
async def test_where_units_are_exposed_the_id_names_the_unit(exposures, unit):
    answer = await Plane(split=split(exposures=exposures)).ask(headers=UNIT)
    found = parse_request_id(answer.headers[HEADER])
    assert (found.version, found.unit) == ("2", unit)


async def test_an_answer_of_stables_instead_of_the_canarys_names_stable():
    plane = Plane(by_version(v2=BOOM), split=split(exposures=True))
    answer = await plane.ask(headers=UNIT)
    found = parse_request_id(answer.headers[HEADER])
    assert (found.version, found.unit) == ("1", "u1")


async def test_a_plain_answer_says_it_in_its_body_too_unless_the_client_brought_one():
    plane = Plane()
    payload = b'{"model":"sums","data":[[1,2,3,4]]%b}'
    own = await plane.ask("/predict", payload % b"")
    assert own.json["request_id"] == own.headers[HEADER]
    brought = await plane.ask("/predict", payload % b',"request_id":"mine"')
    assert brought.json["request_id"] == "mine"
    assert parse_request_id(brought.headers[HEADER]).model == "sums"


async def test_the_clients_own_id_of_a_request_stays_in_its_body():
    answer = await Plane().ask(payload=body(ROW, id="mine"))
    assert answer.json["id"] == "mine"
    assert parse_request_id(answer.headers[HEADER]).version == "1"


async def test_a_refusal_has_none():
    answer = await Plane(by_version(v1=BOOM)).ask()
    assert answer.status == 500
    assert HEADER not in answer.headers
