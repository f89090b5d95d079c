"""Simulated instances: they route by the published table and count with the real telemetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.path.traffic import Requests, Rng, Traffic
from contract.messages import Batch, InstanceReport
from contract.routing import CanarySplit, RoutingTable
from dataplane.ends import ANSWERED, FAILED, FELL_BACK
from dataplane.router import Decision, Router
from dataplane.telemetry import DEFAULT_INTERVAL_S, Telemetry
from dataplane.unit_clusters import cluster_of_bucket
from dataplane.window_counter import Counter

# The delay from a table's publication until an instance uses it.
APPLIES_IN_S = 0.4
# The duration of stable's response to a request that fell back.
FALLBACK_S = 0.02
NEVER = math.inf

# A planned call: (Unix seconds, tie-breaker, function, arguments).
Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]


@dataclass(frozen=True)
class Route:
    """A model's part of the routing table, as used by an instance."""

    router: Router
    split: CanarySplit | None
    step: int


@dataclass
class Instance:
    """One instance. Its clock is `skew_s` ahead, and it drains `phase_s` after each second.

    Only its name survives a restart.
    """

    number: int
    # The prefix of boot names, unique per fleet.
    crew: str = ""
    skew_s: float = 0.0
    phase_s: float = 0.0
    boot: int = 0
    now_s: float = 0.0
    # The end of the current downtime.
    down_until_s: float = 0.0
    generation: int = 0
    sequence: int = 0
    events: list[Event] = field(default_factory=list)
    batches: list[tuple[float, Batch]] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)
    tables: list[tuple[float, RoutingTable]] = field(default_factory=list)
    count: int = 0
    next_unit: int = 0
    drains_at_s: float = NEVER

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(self.clock)

    @property
    def name(self) -> str:
        return f"i-{self.number}"

    @property
    def boot_name(self) -> str:
        return f"{self.crew}{self.boot}"

    def clock(self) -> float:
        """Return the Unix seconds by this instance's clock."""
        return self.now_s + self.skew_s

    def report(self) -> InstanceReport:
        """Return the instance's report."""
        return InstanceReport(
            instance=self.name,
            boot=self.boot_name,
            at_ms=int(self.clock() * 1_000),
            applied_generation=self.generation,
        )

    def restart(self, down_s: float) -> None:
        """Crash, and return with the latest table after `down_s`."""
        self.boot += 1
        self.sequence = 0
        self.down_until_s = self.now_s + down_s
        self.events.clear()
        self.drains_at_s = NEVER
        self.telemetry = Telemetry(self.clock)

    def advance(
        self, until_s: float, began_s: float, traffic: Mapping[str, Traffic], rng: Rng
    ) -> None:
        """Serve the traffic until `until_s`, table by table."""
        while self.now_s < until_s:
            while self.tables and self.tables[0][0] <= self.now_s:
                self._apply(self.tables.pop(0)[1])
            end_s = min([until_s, *(at for at, _ in self.tables[:1])])
            if self.now_s < self.down_until_s:
                self.now_s = end_s = min(end_s, self.down_until_s)
                continue
            for model, each in traffic.items():
                if self.number in each.instances and model in self.routes:
                    self._serve(model, each, (self.now_s, end_s), began_s, rng)
            self._play(end_s)

    def _apply(self, table: RoutingTable) -> None:
        self.generation = table.generation
        for name, route in table.models.items():
            split = route.split if isinstance(route.split, CanarySplit) else None
            before = self.routes.get(name)
            step = before.step if before else -1
            weight = before.split.weight_bp if before and before.split else 0
            if split is not None and split.weight_bp != weight:
                step += 1
            self.routes[name] = Route(Router(name, route, table.generation), split, step)

    def _serve(
        self, model: str, traffic: Traffic, span: tuple[float, float], began_s: float, rng: Rng
    ) -> None:
        start_s, end_s = span
        route = self.routes[model]
        mean = traffic.rate(start_s - began_s) * (end_s - start_s) / len(traffic.instances)
        n = int(rng.poisson(mean))
        if not n:
            return
        at = np.sort(rng.uniform(start_s, end_s, n))
        if traffic.users:
            users = rng.integers(0, traffic.users, n)
        else:
            users = np.arange(self.next_unit, self.next_unit + n) * 1_000 + self.number
            self.next_unit += n
        units = [f"u{user}" for user in users.tolist()]
        places = [route.router.place(unit) for unit in units]
        is_canary = np.array([decision.variant == "canary" for decision, _ in places])
        requests = Requests(at - began_s, users, is_canary, self.number, route.step)
        fates = traffic.fate(rng, requests)
        interval_s = route.split.interval_s if route.split else DEFAULT_INTERVAL_S
        lost = traffic.lost(rng, requests) if traffic.lost else np.zeros(n, dtype=bool)
        columns = (at, lost, fates.end, fates.took_s)
        rows = zip(*(column.tolist() for column in columns), units, places, strict=True)
        for at_s, is_lost, end, took_s, unit, (decision, point) in rows:
            if is_lost:
                continue
            self._expect(model, interval_s, at_s, unit, decision, point, end, took_s)

    def _expect(
        self,
        model: str,
        interval_s: int,
        at_s: float,
        unit: str,
        decision: Decision,
        point: int,
        end: int,
        took_s: float,
    ) -> None:
        """Plan the arrival and the end of a request."""
        key = (model, decision.version, decision.variant, decision.generation, decision.split)
        counter = self.telemetry.counter(key, interval_s)
        cluster = cluster_of_bucket(point) if decision.split else 0
        self._at(at_s, counter.assign, unit, cluster)
        ends_at = at_s + took_s
        if end == ANSWERED:
            self._at(ends_at, counter.answered, unit, took_s * 1e6, cluster)
        elif end == FAILED:
            falls_back = decision.variant == "canary"
            self._at(ends_at, _fail, counter, unit, cluster, falls_back)
            last = FELL_BACK if falls_back else FAILED
            self._at(ends_at + FALLBACK_S * falls_back, counter.end, last, unit, cluster)
        else:
            self._at(ends_at, counter.end, end, unit, cluster)

    def _at(self, at_s: float, function: Callable[..., None], *arguments: Any) -> None:
        self.count += 1
        self.events.append((at_s, self.count, function, arguments))

    def _play(self, end_s: float) -> None:
        """Run the planned calls before `end_s`; drain after each second that has any."""
        self.events.sort()
        rest = len(self.events)
        for place, (at_s, _, function, arguments) in enumerate(self.events):
            if at_s >= end_s:
                rest = place
                break
            if at_s >= self.drains_at_s:
                self._drain()
            if self.drains_at_s == NEVER:
                self.drains_at_s = math.floor(at_s - self.phase_s) + 1.0 + self.phase_s
            self.now_s = at_s
            function(*arguments)
        del self.events[:rest]
        if self.drains_at_s <= end_s:
            self._drain()
        self.now_s = end_s

    def _drain(self) -> None:
        self.now_s, self.drains_at_s = self.drains_at_s, NEVER
        windows, _ = self.telemetry.drain(self.generation)
        if windows:
            self.sequence += 1
            batch = Batch(
                instance=self.name,
                boot=self.boot_name,
                sequence=self.sequence,
                windows=tuple(windows),
            )
            self.batches.append((self.now_s, batch))


def _fail(counter: Counter, unit: str, cluster: int, falls_back: bool) -> None:
    counter.failed(unit, cluster, fell_back=falls_back)
