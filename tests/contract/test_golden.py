"""The golden bytes: encoded by one plane, decoded by the other, and never changed."""

import pytest

from contract import messages, routing
from tests.contract.examples import BATCHES, GOLDEN, REPORT, TABLE, golden_files


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_this_side_writes_the_golden_bytes(name):
    assert golden_files()[name] == (GOLDEN / name).read_bytes()


def test_this_side_reads_the_golden_table():
    assert routing.decode((GOLDEN / "routing_table.json").read_bytes()) == TABLE


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_this_side_reads_the_golden_batches(name):
    assert messages.decode_batch((GOLDEN / f"{name}.msgpack").read_bytes()) == BATCHES[name]


def test_this_side_reads_the_golden_report():
    assert messages.decode_report((GOLDEN / "report.json").read_bytes()) == REPORT


def test_this_side_reads_the_first_table():
    table = routing.decode((GOLDEN / "first" / "routing_table.json").read_bytes())
    assert table.tenants == {}
    assert {name: model.split for name, model in table.models.items()} == {
        name: TABLE.models[name].split for name in ("digits", "words", "retired")
    }


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_this_side_reads_the_first_batches(name):
    batch = messages.decode_batch((GOLDEN / "first" / f"{name}.msgpack").read_bytes())
    assert batch.sequence == BATCHES[name].sequence


def test_this_side_reads_the_first_report():
    report = messages.decode_report((GOLDEN / "first" / "report.json").read_bytes())
    assert report.trips == REPORT.trips
    assert report.pinned == ()
