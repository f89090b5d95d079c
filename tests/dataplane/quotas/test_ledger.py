"""The workers of an instance take tokens from one line, whichever gets the request."""

from __future__ import annotations

import fcntl
import os
from math import inf

import pytest

from dataplane.quotas.ledger import COLUMNS, STALE_S, Entry, Ledger
from dataplane.quotas.limits import Limits


@pytest.fixture
def workers(tmp_path):
    ledgers = [Ledger(tmp_path / "quotas", slot) for slot in range(3)]
    yield ledgers
    for ledger in ledgers:
        ledger.close()


def entries(ledgers, rate=10.0, burst=10.0, slots=None, name="shop"):
    created = [Entry(ledger, ledger.find(name)) for ledger in ledgers]
    for entry in created:
        entry.limit(Limits(rate, burst, slots))
    return created


def drain(entry, now, most=1_000):
    passed = 0
    while passed < most and entry.take(now, 1.0) == 0.0:
        passed += 1
    return passed


def leased(ledger, now, instances=1.0):
    with ledger.locked():
        ledger.renewed(now, instances)


def test_a_tenant_has_the_same_line_in_every_worker(workers):
    lines = {name: {w.find(name) for w in workers} for name in ("a", "b", "c")}
    assert all(len(numbers) == 1 for numbers in lines.values())
    assert len(set.union(*lines.values())) == 3


def test_one_worker_may_use_all_tokens_of_the_instance(workers):
    first, second, _ = entries(workers)
    leased(workers[0], 100.0)
    assert drain(second, 100.0) == 10
    assert first.take(100.0, 1.0) > 0


def test_an_instance_starts_with_its_part_of_the_burst(workers):
    leased(workers[0], 100.0, instances=5.0)
    assert drain(entries(workers)[0], 100.0) == 2
    line = workers[1].read(workers[1].find("shop"))
    # Redis must be informed early.
    assert (line.owed, line.used, line.unmet, workers[2].is_short) == (2.0, 2.0, 1.0, True)


def test_without_leases_an_instance_fills_its_share_by_itself(workers):
    leased(workers[0], 100.0, instances=5.0)
    one, two, _ = entries(workers)
    now = 100.0 + STALE_S + 1
    assert not workers[0].is_leased(now)
    assert drain(one, now) == 2
    passed = 0
    for _ in range(1_000):
        now += 0.01
        passed += drain(two, now)
    # A fifth of 10 per second, for 10 s.
    assert passed == pytest.approx(20, abs=1)


def test_with_leases_nothing_fills_by_itself(workers):
    one = entries(workers)[0]
    leased(workers[0], 100.0)
    drain(one, 100.0)
    assert drain(one, 100.0 + STALE_S / 2) == 0


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_a_clock_that_jumps_creates_at_most_a_burst(workers, jump_s):
    one = entries(workers)[0]
    drain(one, 2e6)
    assert drain(one, 2e6 + jump_s) <= 10
    assert drain(one, 2e6 + jump_s) == 0


def test_a_request_above_the_burst_passes_at_a_full_burst_and_is_charged(workers):
    one = entries(workers)[0]
    leased(workers[0], 100.0, instances=5.0)
    assert one.take(100.0, 8.0) == 0.0
    assert workers[0].read(one.number).credit == -6.0
    one.charge(1.0)
    assert workers[0].read(one.number).credit == -7.0


def test_slots_are_counted_across_workers_and_end_with_them(workers, tmp_path):
    one, two, _ = entries(workers, rate=None, slots=3)
    assert [one.has_slot(1.0, 0), one.has_slot(1.0, 1), two.has_slot(1.0, 0)] == [True] * 3
    assert not two.has_slot(1.0, 1)
    one.note(1)
    assert two.has_slot(1.0, 1)
    # A worker that is restarted has no requests in progress.
    again = Ledger(tmp_path / "quotas", 1)
    assert again.column(one.number) == (0, 1)
    again.close()


def test_a_worker_that_is_stopped_with_the_lock_does_not_block_others(workers, tmp_path):
    one = entries(workers)[0]
    held = os.open(tmp_path / "quotas", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert drain(one, 100.0) == 10
    os.close(held)
    assert workers[0].lock()
    workers[0].unlock()


def test_columns_beyond_the_last_are_shared(tmp_path):
    ledger = Ledger(tmp_path / "quotas", COLUMNS + 2)
    entry = entries([ledger], rate=None, slots=5)[0]
    assert entry.has_slot(1.0, 0)
    assert ledger.column(entry.number) == (1, 0)
    ledger.close()


def test_a_file_of_another_format_is_recreated(tmp_path):
    (tmp_path / "quotas").write_bytes(b"not a ledger" * 1_000)
    ledger = Ledger(tmp_path / "quotas")
    assert (ledger.instances, ledger.renewed_at, ledger.active_lines()) == (1.0, 0.0, [])
    ledger.close()


def test_a_rate_of_zero_never_grants(workers):
    one = entries(workers, rate=0.0, burst=1.0)[0]
    assert one.take(1.0, 1.0) == 0.0
    assert one.take(1.0, 1.0) == inf
