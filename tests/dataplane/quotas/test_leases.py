"""A fleet on a real Redis, with a manual clock where possible: no token is lost or created."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
import redis.asyncio as redis

from dataplane.quotas.leases import KEY, Leases
from dataplane.quotas.ledger import Entry, Ledger
from dataplane.quotas.limits import Limits
from dataplane.quotas.script import LEASE_S


class Part:
    """One instance with two workers."""

    def __init__(self, folder, client, name, limits):
        folder.mkdir()
        self.ledgers = [Ledger(folder / "quotas", slot) for slot in range(2)]
        self.entries = [Entry(each, each.find("shop")) for each in self.ledgers]
        for entry in self.entries:
            entry.limit(limits)
        tenants = {self.entries[0].number: ("shop", limits)}
        lock = folder / "quotas.lock"
        self.leases = [Leases(each, client, name, lambda: tenants, lock) for each in self.ledgers]

    async def renew(self):
        for lease in self.leases:
            lease._due_at = 0.0
            await lease.turn()

    def use(self, most=10_000, worker=0):
        passed, now = 0, monotonic()
        while passed < most and self.entries[worker].take(now, 1.0) == 0.0:
            passed += 1
        return passed

    @property
    def line(self):
        return self.ledgers[0].read(self.entries[0].number)

    def close(self):
        for each in (*self.leases, *self.ledgers):
            each.close()


@pytest.fixture
async def fleet(valkey, tmp_path):
    client = redis.Redis.from_url(valkey.url)
    parts = []

    def make(count, rate=50.0, burst=50.0, slots=None):
        for number in range(count):
            limits = Limits(rate, burst, slots)
            parts.append(Part(tmp_path / f"i{number}", client, f"i{number}", limits))
        return parts

    yield make
    for part in parts:
        part.close()
    await client.aclose()


async def heard(parts):
    """Let each instance know of all others."""
    for _ in range(2):
        for part in parts:
            await part.renew()
            with part.ledgers[0].locked():
                part.ledgers[0].renewed(monotonic() - 0.5, part.ledgers[0].instances)
    for part in parts:
        await part.renew()


async def test_instances_count_each_other(fleet):
    parts = fleet(4)
    await heard(parts)
    assert {part.ledgers[1].instances for part in parts} == {4.0}
    assert all(part.ledgers[1].is_leased(monotonic()) for part in parts)


async def test_all_instances_use_the_burst_once_and_then_the_rate(fleet):
    parts = fleet(4)
    await heard(parts)
    began, used = monotonic(), 0
    while (elapsed := monotonic() - began) < 4.0:
        for part in parts:
            used += part.use()
            await part.renew()
        await asyncio.sleep(0.05)
    # The tokens that the burst used in advance are paid back over eight seconds.
    paid = 50 * 0.75 * elapsed / 8
    assert used == pytest.approx(50 + 50 * elapsed - paid, abs=15)


async def test_one_instance_gets_what_the_others_do_not_request(fleet):
    parts = fleet(4)
    await heard(parts)
    began, used = monotonic(), 0
    while (elapsed := monotonic() - began) < 3.0:
        used += parts[2].use(worker=1)
        await parts[2].renew()
        for part in parts[:2]:
            await part.renew()
        await asyncio.sleep(0.05)
    assert used > 50 * elapsed


async def test_unused_tokens_are_returned(fleet, valkey):
    parts = fleet(2, burst=4.0)
    await heard(parts)
    for _ in range(5):
        parts[0].use()
        await parts[0].renew()
        await asyncio.sleep(0.1)
    assert parts[0].line.credit > 3
    # Without demand it keeps only its part of the burst.
    for _ in range(20):
        await parts[0].renew()
    assert parts[0].line.credit == pytest.approx(2, abs=0.1)


async def test_a_burst_of_one_allows_the_rate(fleet):
    parts = fleet(2, burst=1.0)
    await heard(parts)
    began, used, attempts = monotonic(), 0, 0
    while monotonic() - began < 2.0:
        attempts += 1
        used += parts[0].use(1)
        await parts[0].renew()
        await asyncio.sleep(0.025)
    assert used > 0.95 * attempts


async def test_a_killed_instance_is_forgotten_and_the_next_worker_takes_over(fleet):
    parts = fleet(2)
    await heard(parts)
    for part in parts:
        part.use(5)
        await part.renew()
    # The leader of the first instance ends; the kernel releases its lock.
    parts[0].leases[0].close()
    parts[0].leases.pop(0)
    await parts[0].renew()
    assert parts[0].ledgers[0].is_leased(monotonic())
    # The second instance ends with the tokens that it held.
    parts[0].use()
    await asyncio.sleep(LEASE_S + 0.2)
    used = 0
    for _ in range(10):
        await parts[0].renew()
        used += parts[0].use()
        await asyncio.sleep(0.05)
    assert used > 50


async def test_without_redis_each_enforces_its_share_and_logs_it(fleet, valkey, caplog):
    parts = fleet(2)
    await heard(parts)
    for part in parts:
        part.use()
    valkey.stop()
    await asyncio.sleep(1.6)
    began, used = monotonic(), 0
    for part in parts:
        part.use()
    while (elapsed := monotonic() - began) < 2.0:
        for part in parts:
            used += part.use()
            await part.renew()
        await asyncio.sleep(0.05)
    assert used == pytest.approx(50 * elapsed, abs=6)
    assert not parts[0].ledgers[1].is_leased(monotonic())
    assert caplog.text.count("quotas.shared") == 2
    valkey.start()
    # A Redis that lost everything starts empty, because both still use the quota.
    await parts[0].renew()
    await parts[1].renew()
    await parts[0].renew()
    assert "quotas.leased" in caplog.text
    assert sum(part.use() for part in parts) < 50


async def test_a_quota_below_one_per_second_grants_whole_tokens(fleet):
    parts = fleet(4, rate=0.5, burst=1.0)
    await heard(parts)
    # Each instance admits one request, which it pays for later.
    assert [part.use() for part in parts] == [1, 1, 1, 1]
    for _ in range(10):
        for part in parts:
            await part.renew()
        await asyncio.sleep(0.05)
    assert sum(part.use() for part in parts) == 0


async def test_slots_go_to_the_instances_that_request_them(fleet):
    parts = fleet(2, rate=None, slots=10)
    await heard(parts)
    for _ in range(3):
        in_flight = 0
        while parts[0].entries[0].has_slot(monotonic(), in_flight):
            in_flight += 1
        parts[0].entries[0].note(0)
        await parts[0].renew()
    assert in_flight == 10


async def test_redis_keys_are_small_and_expire(fleet, valkey):
    parts = fleet(2)
    await heard(parts)
    parts[0].use(1)
    await parts[0].renew()
    async with redis.Redis.from_url(valkey.url) as client:
        keys = await client.keys(f"{KEY}*")
        assert len(keys) == 2
        assert all([0 < await client.pttl(key) <= 60_000 for key in keys])
        assert await client.memory_usage(f"{KEY}:t:shop") < 1_000


async def test_a_call_that_fails_keeps_the_debt(fleet, valkey):
    (part,) = fleet(1)
    await heard([part])
    part.use(3)
    valkey.stop()
    await part.renew()
    assert part.line.owed == 50.0


async def test_a_worker_with_an_older_table_ignores_a_new_tenant(fleet):
    (part,) = fleet(1)
    await heard([part])
    part.use(3)
    part.leases[0]._tenants = lambda: {1_000_000: ("other", Limits(1.0, 1.0, None))}
    before = part.line
    await part.renew()
    assert (part.line.active, part.line.credit, part.line.owed) == (1.0, before.credit, before.owed)


async def test_two_workers_of_an_instance_never_both_renew(fleet):
    (part,) = fleet(1)
    part.use(3)
    assert [lease._leads() for lease in part.leases] == [True, False]
    part.leases[0].close()
    leader = part.leases.pop(0)
    assert leader is not part.leases[0]
    assert part.leases[0]._leads()
