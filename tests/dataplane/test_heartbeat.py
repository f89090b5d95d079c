import asyncio

from dataplane import heartbeat
from dataplane.heartbeat import Heartbeat


async def test_no_exception_ends_the_loop(monkeypatch):
    monkeypatch.setattr(heartbeat, "PAUSE_S", 0.0)
    turns = []
    enough = asyncio.Event()

    async def turn():
        turns.append(1)
        if len(turns) < 3:
            raise ValueError("no")
        if len(turns) == 5:
            enough.set()

    beat = Heartbeat("t")
    task = asyncio.create_task(beat.run(turn, 0.0))
    await enough.wait()
    task.cancel()
    assert beat.failures == 2
    assert beat.trouble is None


async def test_the_same_failure_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(heartbeat, "PAUSE_S", 0.0)
    beat = Heartbeat("t")

    enough = asyncio.Event()

    async def turn():
        if beat.failures == 5:
            enough.set()
        raise ValueError("no")

    task = asyncio.create_task(beat.run(turn, 0.0))
    await enough.wait()
    task.cancel()
    assert [r.message for r in caplog.records] == ["t.failed: ValueError: no"]


def test_its_age_grows_until_it_beats():
    now = [0.0]
    beat = Heartbeat("t", lambda: now[0])
    now[0] = 7.0
    assert beat.age_s == 7.0
    beat.beat()
    assert beat.age_s == 0.0


async def test_it_turns_early_when_it_is_woken():
    turned = asyncio.Event()
    wake = asyncio.Event()

    async def turn():
        turned.set()

    task = asyncio.create_task(Heartbeat("t").run(turn, 60.0, wake))
    for _ in range(3):
        await asyncio.wait_for(turned.wait(), 5)
        turned.clear()
        wake.set()
    task.cancel()
