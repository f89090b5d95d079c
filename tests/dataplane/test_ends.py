"""Every assigned request ends in exactly one way: random scripts on a plane with a held Triton."""

import asyncio
from collections import Counter, defaultdict
from random import Random

import pytest

from contract.messages import ClusterCounts
from contract.routing import Batching, Breaker
from contract.routing import Cache as CacheSettings
from dataplane.cache import Cache
from dataplane.ends import ENDS
from dataplane.triton import Fault, TritonError
from tests.dataplane.test_predict import BOOM, INFER, REFUSED, Plane
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import EXPERIMENT, body, canary, sums_reply

STEPS = 300
SETTINGS = {
    "timeout_ms": 60,
    "batching": Batching(max_batch_size=3, max_queue_delay_us=1_000, max_queue_size=5),
    "breaker": Breaker(window=8, failures=3, open_ms=20),
}
SPLITS = [None, canary(5_000), canary(4_000, baseline_bp=4_000, exposures=True), EXPERIMENT]
HEADERS = [
    "", "", "x-interlock-timeout-ms: 20\r\n", "x-interlock-timeout-ms: 55\r\n",
    "cache-control: no-store\r\n", "cache-control: no-cache\r\n",
]  # fmt: skip


class Script:
    """Clients, a model server and an operator that act at random."""

    def __init__(self, seed, cached):
        self.random = Random(seed)
        self.plane = Plane(None, **SETTINGS)
        self.changes = dict(SETTINGS)
        if cached:
            self.plane.serving.cache = Cache(asyncio.get_running_loop(), None, 100, 10**6)
            self.changes["cache"] = CacheSettings(ttl_s=60)
        self.generation = 1
        self.apply()
        self.wires = []
        self.finished = 0
        self.windows = []

    def apply(self):
        self.generation += 1
        split = self.random.choice(SPLITS)
        self.plane.apply(self.generation, split=split, **self.changes)

    def arrive(self):
        random = self.random
        wire = Wire(answer=self.plane.application)
        unit = random.choice(["", *[f"x-unit-id: u{n}\r\n" for n in range(8)]])
        target = random.choice([INFER] * 8 + ["/v2/models/sums/versions/2/infer"])
        payload = body(*[[float(random.randrange(4)), 2, 3, 4]] * random.randint(1, 2))
        wire.feed(request(target, payload, unit + random.choice(HEADERS)))
        self.wires.append(wire)

    def hang_up(self):
        wire = self.random.choice(self.wires[-12:] or [Wire()])
        if wire.connection.transport is not None:
            if self.random.random() < 0.5:
                wire.connection.eof_received()
            else:
                wire.connection.connection_lost(None)

    def finish(self):
        if self.finished < len(self.plane.triton.calls):
            random = self.random
            dead = TritonError(Fault.DEAD, "x")
            bad = (BOOM, REFUSED, TritonError(Fault.TIMEOUT, "late"), dead, dead)
            call, _ = self.plane.triton.calls[self.finished]
            result = sums_reply(call) if random.random() < 0.6 else random.choice(bad)
            self.plane.triton.finish(self.finished, result)
            self.finished += 1

    async def run(self):
        acts = [self.arrive] * 10 + [self.finish] * 6 + [self.hang_up] * 2
        for step in range(STEPS):
            self.random.choice(acts)()
            if step % 50 == 49:
                self.apply()
            if self.random.random() < 0.4:
                await asyncio.sleep(self.random.choice([0, 0, 0.002, 0.01]))
            if self.random.random() < 0.1:
                self.drain()
        await self.settle()
        self.drain()

    async def settle(self):
        """End everything in progress, as a model server eventually does and a stop at last."""
        for _ in range(20):
            while self.finished < len(self.plane.triton.calls):
                self.finish()
            await asyncio.sleep(0.01)
        for wire in self.wires:
            if wire.connection.transport is not None:
                wire.connection.connection_lost(None)

    def drain(self):
        self.windows += self.plane.telemetry.drain(self.generation)[0]


async def scripted(seed, cached):
    script = Script(seed, cached)
    await script.run()
    return script


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("seed", range(8))
async def test_the_assigned_requests_are_the_sum_of_the_ends(seed, cached):
    script = await scripted(seed, cached)
    sums = defaultdict(lambda: [0, 0])
    for window in script.windows:
        place = sums[window.version, window.variant, window.generation, window.split]
        place[0] += window.assigned_requests
        place[1] += window.ends.total
    assert [place for place, (assigned, ended) in sums.items() if assigned != ended] == []
    assert sum(assigned for assigned, _ in sums.values()) == len(script.wires)


@pytest.mark.parametrize("seed", range(8, 12))
async def test_ends_match_the_answers_and_windows_the_sums_of_their_clusters(seed):
    script = await scripted(seed, cached=True)
    ends = Counter()
    for window in script.windows:
        ends.update({name: getattr(window.ends, name) for name in ENDS})
        check(window)
    answers = [wire.transport.written for wire in script.wires]
    well = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200 ")]
    hits = sum(b"x-interlock-cache: l1" in answer for answer in well)
    assert hits == ends["cached"]
    rescued = sum(b"x-interlock-fallback: " in answer for answer in well)
    # A half-closed client gets its answer although it counts as abandoned.
    assert 0 <= len(well) - hits - rescued - ends["answered"] <= ends["abandoned"]
    assert rescued <= ends["fell_back"] + ends["bypassed"] + ends["shed"] + ends["abandoned"]


async def test_the_scripts_reach_every_end():
    ends = Counter()
    for seed in range(5):
        script = await scripted(seed, cached=seed == 0)
        for window in script.windows:
            ends.update({name: getattr(window.ends, name) for name in ENDS})
    assert [name for name in ENDS if not ends[name]] == []


def check(window):
    assert window.unanswered <= window.ends.total
    if not window.split:
        assert window.clusters == {}
        return
    whole = ClusterCounts()
    for counts in window.clusters.values():
        whole = whole.merge(counts)
    assert (whole.assigned, whole.unanswered) == (window.assigned, window.unanswered)
    assert (whole.n, whole.latency) == (window.units + window.anonymous, window.latency)
