"""A quota holds for the fleet, not for each instance or each worker.

The attacks: a quota of 100 per second was 1,000 on ten instances; a connection that stays on one of
four workers got a quarter.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from time import monotonic

import httpx

from contract.routing import Tenant
from tests.dataplane.groups import TOKEN, a_group

RATE = 40.0
KEY = {"x-api-key": "shop"}
OUTCOME = {"unit_id": "u", "metric": "m", "value": 1}
TENANCY = {
    "tenants": {
        "shop": Tenant(keys=(hashlib.sha256(b"shop").hexdigest(),), requests_per_s=RATE, burst=10)
    },
    "key_required": True,
}


async def ask(group, until_s):
    """Send requests over one connection; return how many passed and how many were refused."""
    passed = refused = 0
    async with httpx.AsyncClient(base_url=group.url, timeout=20) as client:
        while monotonic() < until_s:
            answer = await client.post("/outcomes", json=OUTCOME, headers=KEY)
            assert answer.status_code in (202, 429), answer.text
            passed += answer.status_code == 202
            refused += answer.status_code == 429
    return passed, refused


def check(seconds, counts):
    """Check that the quota passed, or all requests of a busy machine."""
    passed, refused = map(sum, zip(*counts, strict=True))
    quota = seconds * RATE
    assert passed < 1.1 * quota + 10
    assert passed > 0.85 * quota or refused < 0.05 * quota


async def leased(group):
    return await group.metric("interlock_quotas_leased") == 1


async def settled(group, instances):
    while await group.metric("interlock_quota_instances") != instances:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def test_a_quota_is_one_number_for_instances_workers_and_one_connection(valkey, tmp_path):
    async with AsyncExitStack() as stack:
        groups = [
            await stack.enter_async_context(
                a_group(
                    valkey, tmp_path / name, workers=2, tenancy=TENANCY,
                    INTERLOCK_INSTANCE_NAME=name,
                )
            )
            for name in ("one", "two")
        ]  # fmt: skip
        for group in groups:
            await settled(group, 2)
        check(6, [await ask(groups[0], monotonic() + 6)])
        check(6, await asyncio.gather(*(ask(group, monotonic() + 6) for group in groups * 2)))


async def test_an_instance_logs_when_it_enforces_its_share_by_itself(valkey, tmp_path):
    async with a_group(valkey, tmp_path, workers=2, tenancy=TENANCY) as group:
        await settled(group, 1)
        while not await leased(group):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        valkey.stop()
        async with httpx.AsyncClient(base_url=group.url, headers=TOKEN) as client:

            async def quotas():
                answer = await client.get("/v2/health/ready")
                return answer.json()["quotas"]

            while await quotas() != "shared":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            check(3, [await ask(group, monotonic() + 3)])
            assert not await leased(group)
            valkey.start()
            while await quotas() != "leased":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
