"""Measures the cost of publication: ticks over many live rollouts, a polling fleet, and its acks.

PostgreSQL, Valkey and the web process are the product's own; this process ticks as the worker does.
The pollers are lightweight and use the real protocol. It fails if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import httpx

from bench.ingest import prepare
from bench.publishing.fleet import Fleet, polling
from bench.testbed import machine
from embedded.resource_usage import descendants, usage_of
from embedded.stack import Stack, running

if TYPE_CHECKING:
    from bench.publishing.world import Size

TICK_CPU_S_MAX = 1.0
ACKED_S_MAX = 2.0
POLLS_SHARE_MAX = 0.05
# The number of steady ticks, and the seconds of polls alone.
TICKS = 20
POLLS_S = 10.0
ACKS_WITHIN_S = 15.0
# The numbers of rollouts that advance at the same time.
STEPS = (1, 10, 50)


@dataclass
class Report:
    """Prints rows, and records the missed bars."""

    missed: list[str] = field(default_factory=list)

    def row(self, label: str, value: float, unit: str, bar: float | None = None) -> None:
        is_missed = bar is not None and value > bar
        if is_missed:
            self.missed.append(label)
        cells = (label, f"{value:,.3g} {unit}", f"≤ {bar:g} {unit}" if bar else "")
        print(f"| {' | '.join(cells)} | {'MISSED' if is_missed else ''} |", flush=True)


def main() -> int:
    """Print the rows; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="bench publication", description=__doc__)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--pollers", type=int, default=40)
    parser.add_argument(
        "--profile", action="store_true", help="print a profile of the steady ticks at the end"
    )
    options = parser.parse_args(sys.argv[2:])
    parts = {"postgres", "redis", "migrate", "web"}
    with (
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as directory,
        running(Path(directory), parts) as stack,
    ):
        prepare(stack)
        print(
            f"{machine()}; {options.models:,} models, {options.rollouts} live rollouts, "
            f"{options.pollers} pollers; PostgreSQL, Valkey, web, ticks and pollers on it\n\n"
            "| what | measured | bar | |\n| --- | --- | --- | --- |"
        )
        bench = Bench(stack, options)
        bench.run()
    return 1 if bench.report.missed else 0


class Bench:
    """A control plane with its data, and the fleet that polls it."""

    def __init__(self, stack: Stack, options: argparse.Namespace) -> None:
        from bench.publishing.world import Size

        self.stack = stack
        self.size: Size = Size(options.models, options.rollouts, options.pollers)
        self.is_profiled: bool = options.profile
        self.report = Report()

    def run(self) -> None:
        from apps.lib.clock import database_now
        from bench.publishing.world import interval_before, issue_secret, make_world

        now = interval_before(database_now())
        # The intervals that close during the measured ticks already have their measurements.
        make_world(self.size, now - timedelta(seconds=60), now + timedelta(seconds=150))
        stack = self.stack
        secret = issue_secret()
        with polling(self.size.instances, stack.urls.web, secret, stack.redis_url) as fleet:
            self._wait_for_acks(self._newest())
            self.steady_ticks()
            for steps in STEPS:
                self.publish(fleet, min(steps, self.size.rollouts))
            self.abort()
            self.polls(fleet)

    def steady_ticks(self) -> None:
        """Tick once per second, as beat does, which evaluates what is due."""
        self._tick()
        with _profiled(self.is_profiled):
            costs = [self._tick_each_second() for _ in range(TICKS)]
        ours, theirs = zip(*costs, strict=True)
        self.report.row("a tick, CPU, maximum of 20", max(ours), "s", TICK_CPU_S_MAX)
        self.report.row("a tick, CPU, median", median(ours), "s")
        self.report.row("a tick, CPU of PostgreSQL, maximum", max(theirs), "s")
        self.report.row("evaluations in 20 s", self._evaluation_count(), "")

    def publish(self, fleet: Fleet, steps: int) -> None:
        """Advance `steps` rollouts at once; tick until all have, and the fleet has acked."""
        from apps.rollouts.models import Rollout
        from bench.publishing.world import let_pass

        baking = Rollout.objects.filter(phase="baking", step_due_at__isnull=False)
        chosen = list(baking.order_by("step_index", "pk")[:steps])
        let_pass(chosen)
        before = self._newest()
        keys = [rollout.pk for rollout in chosen]
        left = Rollout.objects.filter(pk__in=keys, generation__lte=before)
        fleet.tally()
        costs = []
        while left.exists() and len(costs) < TICKS:
            costs.append(self._cost(self._tick)[0])
            self._wait_for_acks(self._newest())
        what = f"{steps} step{'s' if steps > 1 else ''} at once"
        self.report.row(f"{what}: ticks", len(costs), "")
        self.report.row(f"{what}: publications", self._published_since(before), "", len(costs))
        self.report.row(f"{what}: CPU of a tick, maximum", max(costs), "s", TICK_CPU_S_MAX)
        tally = fleet.tally()
        acked_s = max(tally.acked_s, default=0.0)
        self.report.row(f"{what}: publication → all acked", acked_s, "s", ACKED_S_MAX)
        self.report.row(f"{what}: pulled by a poller", tally.delta_bytes / 1e3, "kB")
        self.report.row(f"{what}: the whole table", tally.whole_bytes / 1e3, "kB")

    def abort(self) -> None:
        """Abort one rollout by REST, and wait until the fleet has acked."""
        from apps.rollouts.models import Rollout

        rollout = Rollout.objects.filter(phase="baking").order_by("-pk")[0]
        started_at = time.time()
        response = httpx.post(
            f"{self.stack.urls.web}/api/v1/rollouts/{rollout.pk}/abort/",
            json={"reason": "bench"},
            headers={"authorization": f"Bearer {self._api_token()}"},
            timeout=30,
        )
        response.raise_for_status()
        self._wait_for_acks(self._newest())
        self.report.row("abort by REST → all acked", time.time() - started_at, "s", ACKED_S_MAX)

    def polls(self, fleet: Fleet) -> None:
        """Let the fleet poll an unchanged table, first without and then with reports."""
        for what, bar in (("polls", POLLS_SHARE_MAX), ("polls and reports", None)):
            fleet.reports.set() if bar is None else fleet.reports.clear()
            time.sleep(2.5)
            fleet.tally()
            before, at = self._web_cpu_s(), time.monotonic()
            time.sleep(POLLS_S)
            share = (self._web_cpu_s() - before) / (time.monotonic() - at)
            self.report.row(f"web, {what}", share, "of a core", bar)
            tally = fleet.tally()
            self.report.row(f"web, {what}: polls a second", tally.unchanged / POLLS_S, "/s")
            self.report.row(
                f"web, {what}: other responses", tally.whole + tally.delta + tally.failed, ""
            )

    # --- actions and their cost --------------------------------------------------------

    def _tick(self) -> None:
        from apps.rollouts.tasks import tick_task

        tick_task()

    def _tick_each_second(self) -> tuple[float, float]:
        began = time.monotonic()
        cost = self._cost(self._tick)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
        return cost

    def _cost(self, action: Callable[[], None]) -> tuple[float, float]:
        """Return the CPU seconds of this process and of PostgreSQL."""
        theirs, ours = self._postgres_cpu_s(), time.process_time()
        action()
        return time.process_time() - ours, self._postgres_cpu_s() - theirs

    def _cpu_s(self, mark: str) -> float:
        used = usage_of(descendants(self.stack.pid))
        return sum(each.cpu_s for each in used if mark in each.command)

    def _postgres_cpu_s(self) -> float:
        return self._cpu_s("postgres")

    def _web_cpu_s(self) -> float:
        return self._cpu_s("granian")

    def _wait_for_acks(self, generation: int) -> None:
        """Wait until the whole fleet has reported the table. Raises SystemExit on timeout."""
        from apps.rollouts.models import Instance

        acked = Instance.objects.filter(applied_generation__gte=generation)
        until = time.monotonic() + ACKS_WITHIN_S
        while acked.count() < self.size.instances:
            if time.monotonic() > until:
                raise SystemExit(
                    f"not all instances acked generation {generation} within {ACKS_WITHIN_S:g} s"
                )
            time.sleep(0.02)

    def _newest(self) -> int:
        from apps.rollouts.epochs import latest_generation

        return latest_generation()

    def _published_since(self, generation: int) -> int:
        from apps.rollouts.models import PublishedTable

        return PublishedTable.objects.filter(generation__gt=generation).count()

    def _evaluation_count(self) -> int:
        from apps.rollouts.models import Evaluation

        return Evaluation.objects.values("rollout", "at").distinct().count()

    def _api_token(self) -> str:
        from django.contrib.auth.models import User

        from controlplane.models import ApiToken

        user, _ = User.objects.get_or_create(username="bench", is_superuser=True)
        return ApiToken.issue(user_id=user.pk, name="bench")[1]


@contextmanager
def _profiled(is_enabled: bool) -> Iterator[None]:
    if not is_enabled:
        yield
        return
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(70)
