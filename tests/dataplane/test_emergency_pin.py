"""The emergency pin: in one process, in all workers, and across a restart."""

import httpx
import pytest

from dataplane.pin_file import PinFile, changed
from tests.dataplane.groups import TOKEN, a_group


async def variants(group, count=12):
    return {(await group.predict(str(n))).headers["x-interlock-variant"] for n in range(count)}


async def test_a_pin_takes_effect_in_every_worker_and_survives_a_restart(valkey, tmp_path):
    async with a_group(valkey, tmp_path) as group:
        assert await variants(group) == {"canary"}
        group.control.data = b"{"
        answer = await group.post("/operator/pin", {"model": "sums"})
        assert answer.json() == {"pinned": ["sums"], "stored": True, "workers": 2, "confirmed": 2}
        assert await variants(group) == {"stable"}
        assert await group.metric('interlock_pinned{model_name="sums"}') == 1
        assert (await group.get("/v2/health/ready")).json()["pinned"] == ["sums"]
        await group.stop()
        await group.start()
        assert await variants(group) == {"stable"}
        assert group.control.reports[-1].pinned == ("sums",)
        await group.post("/operator/unpin", {"model": "sums"})
        assert await variants(group) == {"canary"}


async def test_a_star_pins_every_model(valkey, tmp_path):
    async with a_group(valkey, tmp_path, workers=1) as group:
        await group.post("/operator/pin", {"model": "*"})
        assert await variants(group, 3) == {"stable"}
        refused = await group.post("/operator/unpin", {"model": "sums"})
        assert refused.json()["code"] == "pinned_as_all"
        await group.post("/operator/unpin", {"model": "*"})
        assert await variants(group, 3) == {"canary"}


async def test_only_the_operator_may_pin(valkey, tmp_path):
    async with a_group(valkey, tmp_path, workers=1) as group:
        async with httpx.AsyncClient(base_url=group.url) as unauthenticated:
            refused = await unauthenticated.get("/operator/pin")
        assert (refused.status_code, refused.json()["code"]) == (401, "operator_token_wrong")
        unknown = await group.post("/operator/pin", {"model": "invented"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
        faulty = await group.post("/operator/pin", {"model": 3})
        assert faulty.json()["code"] == "malformed_request"


def test_pins_outlive_the_process(tmp_path):
    file = PinFile(tmp_path / "pins.json")
    assert file.load() == frozenset()
    assert file.store(frozenset(("a", "b")))
    assert file.load() == {"a", "b"}


@pytest.mark.parametrize("data", [b"", b"{}", b'["a"'])
def test_an_unreadable_file_pins_all_models(tmp_path, data):
    (tmp_path / "pins.json").write_bytes(data)
    assert PinFile(tmp_path / "pins.json").load() == {"*"}


def test_a_pin_that_cannot_be_stored_is_reported(tmp_path):
    assert not PinFile(tmp_path / "nowhere" / "pins.json").store(frozenset("a"))


@pytest.mark.parametrize(
    ("before", "model", "pin", "after"),
    [
        ("", "a", True, "a"),
        ("a", "*", True, "a*"),
        ("ab", "a", False, "b"),
        ("b", "a", False, "b"),
        ("ab*", "*", False, ""),
    ],
)
def test_the_result_of_a_change(before, model, pin, after):
    assert changed(frozenset(before), model, pin=pin) == frozenset(after)


def test_the_token_of_the_tests_is_a_bearer():
    assert TOKEN["authorization"].startswith("Bearer ")
