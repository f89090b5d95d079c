"""Triton sends a request without a version to the newest one. Here all calls name the version."""

from __future__ import annotations

from contract.routing import CanarySplit
from tests.dataplane.shadow.shades import shades


def versions_called(upstream):
    lines = [request.partition(b"\r\n")[0] for request in upstream.requests]
    assert all(b"/versions/" in line for line in lines)
    return [line.split(b"/versions/")[1].partition(b"/")[0] for line in lines]


async def test_stable_is_named_though_newer_versions_are_loaded():
    async with shades(shadow=None) as plane:
        for n in range(20):
            answer = await plane.ask(unit=f"u{n}")
            assert answer.json["model_version"] == "1"
        assert set(versions_called(plane.live)) == {b"1"}


async def test_every_call_of_a_split_names_the_version_that_the_answer_names():
    split = CanarySplit(id="r", salt="s", version="2", weight_bp=5_000)
    async with shades(split=split, shadow=None) as plane:
        answers = [await plane.ask(unit=f"u{n}") for n in range(40)]
        named = [answer.headers["x-interlock-version"].encode() for answer in answers]
        assert set(named) == {b"1", b"2"}
        assert versions_called(plane.live) == named


async def test_copies_and_fallbacks_name_their_version_too():
    split = CanarySplit(id="r", salt="s", version="2", weight_bp=10_000)
    async with shades(split=split) as plane:
        plane.live.script = [b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"]
        assert (await plane.ask(unit="u")).status == 200
        assert versions_called(plane.live) == [b"2", b"1"]
        plane.apply(generation=2, split=None)
        await plane.ask(unit="u")
        await plane.settled()
        assert versions_called(plane.shadow) == [b"3"]
