"""A tenant's outcomes are about the requests that it sent: who names another's is refused."""

from __future__ import annotations

import redis.asyncio as redis

from contract.messages import FIELD, STREAM_OUTCOMES, decode_batch
from contract.request_ids import Seal
from tests.dataplane.worlds import until


def outcome(request_id):
    return {"metric": "accuracy", "value": 0, "request_id": request_id}


async def test_a_rivals_request_cannot_be_told_of(door):
    theirs, ours = await door.request_id("rival"), await door.request_id("shop")
    unsealed, _, seal = ours.rpartition("~")
    head, _, at = unsealed.rpartition("-")
    for forged in (
        theirs,
        unsealed,
        # An answer that never was, with the seal of one that was.
        f"{head}-{int(at, 16) + 1:x}~{seal}",
        Seal("a guess", "shop").on(unsealed.encode()).decode(),
        unsealed.replace(":1:", ":2:").replace(":2:", ":1:", 1) + "~" + "0" * 16,
    ):
        refused = await door.post("/outcomes", [outcome(ours), outcome(forged)], "shop")
        assert (refused.status_code, refused.json()["code"]) == (403, "foreign_outcome"), forged
        assert [error["index"] for error in refused.json()["errors"]] == [1]
    assert await door.group.metric("interlock_outcomes_refused_total") == 5
    assert (await door.post("/outcomes", outcome(ours), "shop")).status_code == 202


async def test_an_outcome_carries_who_sent_it(door, valkey):
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
