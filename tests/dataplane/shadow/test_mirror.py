"""Which requests are copied, what is counted of them, and what copies may cost."""

import asyncio

from contract import histogram
from contract.bucketing import bucket
from contract.routing import Breaker, Cache, Shadow
from dataplane.shadow import mirror
from tests.dataplane.shadow.shades import ROW, Negating, shades
from tests.dataplane.worlds import canary, rows_of, until

NEGATIVE = [-1.0, -2.0, -3.0, -4.0]


def share(share_bp):
    return Shadow(id="sh1", salt="sh", version="3", share_bp=share_bp)


def numbers_at(upstream):
    """Return the first number of each row that the upstream got, sorted."""
    return sorted(int(row[0]) for request in upstream.requests for row in rows_of(request)[1])


async def test_copies_are_compared_and_counted():
    async with shades(Negating()) as plane:
        await plane.ask(ROW, NEGATIVE, unit="a")
        await plane.ask(NEGATIVE, unit="b")
        await plane.settled()
        (window,) = plane.shadows.drain()
    assert (window.model, window.version, window.stable) == ("sums", "3", "1")
    assert (window.generation, window.shadow) == (1, "sh1")
    assert (window.compared, window.rows, window.errors, window.dropped) == (2, 3, 0, 0)
    # Only the positive sum had another label; every sum changed its sign.
    assert (window.flips, window.beyond_tolerance) == (1, 3)
    assert window.largest_difference == 20.0
    assert histogram.total(window.latency) == 2
    assert window.started_at_ms <= window.ended_at_ms


async def test_equal_answers_agree():
    async with shades() as plane:
        await asyncio.gather(*(plane.ask([float(n), 0, 0, 0], unit=f"u{n}") for n in range(9)))
        await plane.settled()
        (window,) = plane.shadows.drain()
        assert (window.compared, window.rows) == (9, 9)
        assert (window.flips, window.beyond_tolerance, window.largest_difference) == (0, 0, 0.0)
        # The copies were batched separately.
        assert 1 < len(plane.shadow.requests) < 9


async def test_exactly_the_units_in_its_buckets_are_copied():
    async with shades(shadow=share(3_000)) as plane:
        for n in range(200):
            await plane.ask([float(n), 0, 0, 0], unit=f"u{n}")
        await plane.settled()
        expected = [n for n in range(200) if bucket("sh", f"u{n}") < 3_000]
        assert numbers_at(plane.shadow) == expected
        assert 30 < len(expected) < 90


async def test_at_a_share_of_0_nothing_is_copied():
    async with shades(shadow=share(0)) as plane:
        for n in range(50):
            await plane.ask(unit=f"u{n}")
            await plane.ask()
        await plane.settled()
        assert (plane.shadow.requests, plane.shadows.drain()) == ([], [])


async def test_a_request_without_a_unit_is_drawn(monkeypatch):
    draws = iter([2_999, 3_000, 0, 9_999])
    monkeypatch.setattr(mirror, "randrange", lambda _: next(draws))
    async with shades(shadow=share(3_000)) as plane:
        for n in range(4):
            await plane.ask([float(n), 0, 0, 0])
        await plane.settled()
        assert numbers_at(plane.shadow) == [0, 2]


async def test_only_answers_of_stable_are_copied_beside_a_canary():
    async with shades(split=canary(5_000)) as plane:
        answers = [await plane.ask(unit=f"u{n}") for n in range(60)]
        await plane.settled()
        (window,) = plane.shadows.drain()
        variants = [answer.headers["x-interlock-variant"] for answer in answers]
        assert 0 < variants.count("stable") < 60
        assert window.compared == variants.count("stable")


async def test_an_explicit_request_is_not_copied():
    async with shades() as plane:
        assert (await plane.ask(unit="u", version="1")).status == 200
        await plane.settled()
        assert plane.shadows.drain() == []


async def test_an_answer_that_fell_back_is_not_copied():
    async with shades(split=canary(10_000)) as plane:
        plane.live.script = [b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"]
        answer = await plane.ask(unit="u")
        await plane.settled()
        assert (answer.status, answer.headers["x-interlock-fallback"]) == (200, "failed")
        assert plane.shadows.drain() == []


async def test_an_answer_from_the_cache_is_not_copied():
    async with shades() as plane:
        plane.with_cache()
        plane.apply(cache=Cache(ttl_s=60))
        states = [(await plane.ask(unit="u")).headers["x-interlock-cache"] for _ in range(3)]
        await plane.settled()
        assert states == ["miss", "l1", "l1"]
        assert [window.compared for window in plane.shadows.drain()] == [1]


async def test_a_request_that_was_refused_is_not_copied():
    async with shades() as plane:
        assert (await plane.ask([666.0, 0, 0, 0], unit="u")).status == 500
        await plane.settled()
        assert plane.shadows.drain() == []


async def test_copies_do_not_count_as_requests_of_a_version():
    async with shades() as plane:
        await plane.ask(unit="u")
        await plane.settled()
        windows, _ = plane.telemetry.drain(1)
        assert [(w.version, w.requests) for w in windows] == [("1", 1)]
        assert [version for _, version, _, _ in plane.serving.stats()] == ["1"]


async def test_copies_beyond_the_budget_are_dropped_and_counted():
    async with shades(settings={"copies_max": 4}, timeout_ms=400) as plane:
        plane.shadow.always = "hang"
        for n in range(10):
            await plane.ask(unit=f"u{n}")
            assert plane.shadows.copies <= 4
        assert plane.results() == {"budget": 6}
        await plane.settled()
        # A version without observations gets one row; the other copies expired meanwhile.
        assert plane.results() == {"budget": 9, "failed": 1}
        (window,) = plane.shadows.drain()
        assert (window.compared, window.errors, window.dropped) == (0, 1, 9)


async def test_copies_that_keep_too_many_bytes_are_dropped():
    # The request has 16 bytes and the answer of its batch 12.
    async with shades(settings={"bytes_max": 27}) as plane:
        await plane.ask(unit="u")
        await plane.settled()
        assert plane.results() == {"budget": 1}
        assert plane.shadow.requests == []


async def test_the_answers_of_the_shadow_count_as_bytes_too():
    async with shades(settings={"bytes_max": 39}) as plane:
        await plane.ask(unit="u")
        await plane.settled()
        assert plane.results() == {"budget": 1}
        assert len(plane.shadow.requests) == 1


async def test_while_stable_has_a_backlog_nothing_is_copied():
    async with shades() as plane:
        plane.serving._in_flight_max = 1
        plane.live.delay_s = 0.02
        await asyncio.gather(*(plane.ask(unit=f"u{n}") for n in range(20)))
        await plane.settled()
        results = plane.results()
        assert results["busy"] >= 8
        assert results["compared"] >= 4
        assert sum(results.values()) == 20


async def test_a_copy_is_counted_under_the_generation_that_it_began_with():
    async with shades() as plane:
        plane.shadow.delay_s = 0.1
        await plane.ask(unit="a")
        await until(lambda: len(plane.shadow.requests) == 1)
        plane.apply(generation=2)
        await plane.ask(unit="b")
        await plane.settled()
        windows = plane.shadows.drain()
        assert [(window.generation, window.compared) for window in windows] == [(1, 1), (2, 1)]


async def test_a_table_without_the_shadow_ends_it():
    async with shades() as plane:
        await plane.ask(unit="a")
        await plane.settled()
        plane.apply(generation=2, shadow=None)
        await plane.ask(unit="b")
        await plane.settled()
        assert list(plane.shadows.runtimes()) == []
        assert len(plane.shadow.requests) == 1


async def test_the_queue_and_the_breaker_outlive_a_table_that_leaves_them_as_they_were():
    async with shades() as plane:
        kept = []
        for generation, settings in enumerate(({}, {}, {"breaker": Breaker(window=9)}), 1):
            plane.apply(generation=generation, **settings)
            await plane.ask(unit="a")
            await plane.settled()
            kept += [runtime for _, _, runtime in plane.shadows.runtimes()]
        assert kept[0] is kept[1] is not kept[2]
        assert plane.results() == {"compared": 3}


async def test_comparing_goes_on_in_later_turns(monkeypatch):
    monkeypatch.setattr(mirror, "COMPARE_S", 0.0)
    turns = []
    async with shades(Negating()) as plane:
        # No turn has time to compare until the test allows it.
        await plane.ask(*[ROW] * 4, unit="u")
        await until(lambda: plane.shadows._comparing)
        turns.append(plane.shadows.copies)
        await asyncio.sleep(0.02)
        turns.append(plane.shadows.copies)
        monkeypatch.setattr(mirror, "COMPARE_S", 0.001)
        await plane.settled()
        assert turns == [1, 1]
        assert plane.shadows.drain()[0].rows == 4
