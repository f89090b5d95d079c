"""Invalid tables are refused with a reason, and the last valid table stays in use."""

from __future__ import annotations

from pathlib import Path

import msgspec

from contract.routing import encode
from tests.faults.ground import Ground, wait_until
from tests.faults.load import Load, failures, report
from tests.faults.planes import MODEL, misled, table

GOOD, NEWER = 10, 11


def bad_tables(endpoint: str) -> dict[str, tuple[bytes, str]]:
    """Return invalid documents, each with a word of the expected refusal."""
    whole = encode(table(NEWER, endpoint))
    unknown = msgspec.json.encode({**msgspec.json.decode(whole), "schema": 2})
    return {
        "cut short": (whole[:-20], "schema"),
        "not JSON": (b"\x00\xff" * 50, "schema"),
        "of an unknown schema": (unknown, "schema"),
        "older": (encode(table(GOOD - 1, endpoint)), "older"),
        "of the same number and other content": (
            encode(table(GOOD, endpoint, canary_on=(endpoint,))),
            "other content",
        ),
        "with an unknown version": (encode(table(NEWER, endpoint, version="9")), "flowers.9"),
        "with an endpoint that is nowhere": (encode(table(NEWER, "127.0.0.1:1")), "127.0.0.1:1"),
    }


def test_invalid_tables_are_refused_and_the_valid_one_stays_in_use(
    ground: Ground, tmp_path: Path
) -> None:
    with (
        misled(ground, tmp_path, table(GOOD, ground.triton)) as (control, plane),
        Load(plane.port, ground.question, model=MODEL) as load,
    ):
        for what, (document, word) in bad_tables(ground.triton).items():
            control.document = document
            refusal = control.wait_for_refusal(word)
            assert refusal.applied_generation == GOOD, what
            control.publish(table(GOOD, ground.triton))
            control.wait_for_ack(GOOD)
        began = load.answers[0].at
        control.publish(table(NEWER, ground.triton))
        control.wait_for_ack(NEWER)
    report("7 bad tables published", load, began)

    assert failures(load.answers) == {}


def test_a_start_without_a_control_plane_serves_the_last_valid_table(
    ground: Ground, tmp_path: Path
) -> None:
    with misled(ground, tmp_path, table(GOOD, ground.triton)) as (control, plane):
        control.document = encode(table(NEWER, ground.triton))[:-20]
        control.wait_for_refusal("schema")
        control.close()
        plane.kill()
        took_s = plane.start()
        with Load(plane.port, ground.question, model=MODEL) as load:
            wait_until(lambda: len(load.answers) > 100, 10, "it answers")
    report(f"Started without a control plane ({took_s:.1f} s)", load, load.answers[0].at)

    assert failures(load.answers) == {}
    assert took_s < 10
