"""A tenant's outcomes are about its own requests: one that names another's request is refused."""

from __future__ import annotations

import redis.asyncio as redis

from contract.messages import FIELD, STREAM_OUTCOMES, decode_batch
from contract.request_ids import Seal
from tests.dataplane.worlds import until


def outcome(request_id):
    return {"metric": "accuracy", "value": 0, "request_id": request_id}


async def test_a_rivals_request_cannot_be_named(door):
    theirs, ours = await door.request_id("rival"), await door.request_id("shop")
    unsealed, _, seal = ours.rpartition("~")
    head, _, at = unsealed.rpartition("-")
    model, version, process = head.split(":")
    guess = Seal("a guess", "shop").of(f"{head}-".encode()).decode()
    for forged in (
        theirs,
        unsealed,
        unsealed + guess,
        # Another version, process and model with our seal.
        f"{model}:{'1' if version == '2' else '2'}:{process}-{at}~{seal}",
        f"{head}0-{at}~{seal}",
        f"x{unsealed}~{seal}",
        unsealed + "~" + "0" * 16,
    ):
        refused = await door.post("/outcomes", [outcome(ours), outcome(forged)], "shop")
        assert refused.status_code == 403, (forged, ours, refused.text)
        assert refused.json()["code"] == "foreign_outcome"
        assert [error["index"] for error in refused.json()["errors"]] == [1]
    assert await door.group.metric("interlock_outcomes_refused_total") == 7
    assert (await door.post("/outcomes", outcome(ours), "shop")).status_code == 202


async def test_an_outcome_carries_its_sender(door, valkey):
    sent = {"unit_id": "u1", "metric": "accuracy", "value": 0, "tenant": "shop"}
    assert (await door.post("/outcomes", sent, "rival")).status_code == 400
    del sent["tenant"]
    for key in ("rival", "limited"):
        assert (await door.post("/outcomes", sent, key)).status_code == 202
    async with redis.Redis.from_url(valkey.url) as client:

        async def stored():
            entries = await client.xrange(STREAM_OUTCOMES)
            batches = [decode_batch(fields[FIELD]) for _, fields in entries]
            return [(each.tenant, each.models) for batch in batches for each in batch.outcomes]

        while len(await stored()) < 2:
            await until(lambda: True)
        assert sorted(await stored()) == [("rival", ()), ("shop", ("sums",))]
