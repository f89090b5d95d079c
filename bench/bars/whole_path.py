"""The whole path on a database: windows of several instances, evidence, checks and decisions.

The other sections apply the product's rules to simulated counts. This one simulates requests: the
data plane's telemetry counts them, the control plane ingests the telemetry, and ticks decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from django.contrib.auth.models import User
from django.db.models import Sum

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.models.models import ModelRole, Role
from apps.rollouts.models import Rollout, TelemetryRow
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument
from apps.rollouts.services import approve_step
from apps.rollouts.states import Phase
from bench.bars import Bar, share
from bench.decisions_rules import Rng
from bench.path.apart import measure_in_process
from bench.path.database import simulated_database
from bench.path.drive import BEGAN, Path, is_over, is_rolled_back
from bench.path.traffic import (
    Array,
    Fates,
    Flags,
    Requests,
    Traffic,
    failing,
    steady,
    unanswered,
)
from dataplane.ends import EXPIRED, SHED

PLANS = {template.document.name: template.document for template in TEMPLATES}
DEFAULT, LITTLE = PLANS["canary"], PLANS["little-traffic"]
PER_SECOND = 100.0
# The time after which stable's usual latency is known.
WARM_UP_S = 60.0
INTERVAL_S = 10.0
DAY_S = 86_400.0
# The canary's share in the last step with a half of the traffic.
HALF = 3


@dataclass(frozen=True)
class Size:
    """The number of rollouts per case, and the time scale of the healthy ones.

    `fleets` are the numbers of instances of the healthy rollouts.
    """

    many: int
    few: int
    scale_permille: int
    fleets: tuple[int, ...]

    @property
    def plan(self) -> PlanDocument:
        return msgspec.structs.replace(DEFAULT, time_scale_permille=self.scale_permille)


QUICK = Size(many=3, few=1, scale_permille=60, fleets=(2, 4))
FULL = Size(many=24, few=3, scale_permille=1_000, fleets=(2, 3, 4))
FULL_RUNS = 1_000
WHOLE_LENGTH = 1_000
# The user who starts a rollout cannot approve its gates.
APPROVER = Actor("approver")


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on necessary and false rollbacks, as shipped, at 100/s and from 5 %."""
    seed = int(rng.integers(1 << 40))
    yield from measure_in_process(f"{__name__}:bars_here", seed, runs)


def bars_here(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield the bars in this process, which uses the simulation's database from then on."""
    size = FULL if runs >= FULL_RUNS else QUICK
    logging.getLogger("apps").setLevel(logging.WARNING)
    with simulated_database():
        yield from _without_answer(rng, size)
        yield from _healthy_and_broken(rng, size)
        yield from _lossy(rng, size)
        yield from _days(rng, size)
        yield from _little(rng, size)


def _path(rng: Rng, cases: dict[str, Traffic], plan: PlanDocument) -> Path:
    """Return a fleet of four that served `cases` for a minute and started their rollouts."""
    path = Path.make(rng)
    for name, traffic in cases.items():
        path.add(name, traffic)
    path.publish()
    path.run(WARM_UP_S)
    for name in cases:
        path.start(name, plan)
    return path


def _without_answer(rng: Rng, size: Size) -> Iterator[Bar]:
    """A: clients with a 300-ms deadline, and a canary without capacity."""
    fates = {
        "hangs for 10% of 300-ms clients' requests": unanswered(0.10, EXPIRED, 0.3),
        "sheds 30%": unanswered(0.30, SHED, 0.001),
    }
    for number, (name, fate) in enumerate(fates.items()):
        cases = {f"a{number}-{k}": Traffic(steady(PER_SECOND), fate) for k in range(size.many)}
        path = _path(rng, cases, DEFAULT)
        path.run(180.0, until=is_rolled_back)
        caught = sum(_took_s(each) < 120.0 for each in path.rollouts.values())
        yield share(f"{name}: rolled back in 2 min", caught, size.many, 0.99, is_most=False)


def _took_s(rollout: Rollout) -> float:
    """Return the time from the canary's first table to its last, infinite without a rollback."""
    if not is_rolled_back(rollout):
        return float("inf")
    events = rollout.events.order_by("id")
    began = events.filter(to_state=Phase.BAKING)[0].at
    ended = events.filter(to_state=Phase.ROLLING_BACK)[0].at
    return (ended - began).total_seconds()


def _healthy_and_broken(rng: Rng, size: Size) -> Iterator[Bar]:
    """Yield bars on parallel healthy rollouts, and on ones that break during a rollout."""
    one_percent = failing(lambda requests: 0.01)
    healthy = {
        f"healthy-{n}": Traffic(steady(PER_SECOND), one_percent, instances=tuple(range(n)))
        for n in size.fleets
    }
    lost = {"lost": Traffic(steady(PER_SECOND), _Seconds.of(rng, size))}
    users = {"users": Traffic(steady(20.0), failing(_always), users=2_000)}
    path = _path(rng, {**healthy, **lost, **users}, size.plan)
    _restart(path, size)
    forks = Forks(path, size)
    forks.follow(list(healthy))
    for what, names, bound in (
        ("healthy on 2 to 4 instances, of which two restart", healthy, 0.003),
        ("one lost second per replica", lost, 0.02),
        ("2,000 users, 1% always fail", users, 0.01),
    ):
        back = sum(is_rolled_back(path.rollouts[name]) for name in names)
        yield share(f"{what}: rolled back", back, len(names), bound)
    done = sum(path.rollouts[name].phase == Phase.SUCCEEDED for name in healthy)
    name = "healthy on 2 to 4 instances, of which two restart: promoted"
    yield share(name, done, len(healthy), 0.9, is_most=False)
    yield from forks.bars()


def _always(requests: Requests) -> Array:
    result: Array = (requests.user % 100 == 0).astype(np.float64)
    return result


@dataclass(frozen=True)
class _Seconds:
    """Each version's replica is unavailable for single seconds, one per 100 minutes on average."""

    canary: Array
    stable: Array

    @classmethod
    def of(cls, rng: Rng, size: Size) -> _Seconds:
        """Draw the seconds, at least one for each version."""
        length_s = 9_000.0 * size.scale_permille / 1_000
        counts = [max(1, int(rng.poisson(length_s / 6_000.0))) for _ in "ab"]
        return cls(*(rng.uniform(WARM_UP_S, WARM_UP_S + length_s, n) for n in counts))

    def __call__(self, rng: Rng, requests: Requests) -> Fates:
        def chance(attempted: Requests) -> Array:
            is_lost = np.where(
                attempted.is_canary,
                _within(attempted, self.canary),
                _within(attempted, self.stable),
            )
            return np.where(is_lost, 1.0, 0.001)

        return failing(chance)(rng, requests)


def _within(requests: Requests, seconds: Array) -> Flags:
    since = requests.at_s[:, None] - seconds
    result: Flags = ((since >= 0.0) & (since < 1.0)).any(axis=1)
    return result


def _restart(path: Path, size: Size) -> None:
    """Restart two instances in turn, four times in a rollout."""
    every_s = 2_000.0 * size.scale_permille / 1_000
    for k in range(4):
        path.at(
            WARM_UP_S + (k + 0.5) * every_s,
            lambda path, k=k: path.fleet[k % 2].restart(3.0),  # type: ignore[misc]
        )


class Forks:
    """Follows rollouts, and simulates a fault in a fork at certain moments."""

    def __init__(self, path: Path, size: Size) -> None:
        self.path = path
        self.size = size
        # Whether each fault was detected in time, and the canary requests until then.
        self.dead: dict[str, list[bool]] = {"60 s": [], "three steps": []}
        self.broken: list[float] = []

    def follow(self, names: list[str]) -> None:
        """Follow all rollouts until `names` have ended; break each one at its moments."""
        past: set[tuple[str, str]] = set()
        while not all(is_settled(self.path.rollouts[name]) for name in names):
            self.path.run(INTERVAL_S, until=is_settled)
            for name in names:
                for when in self._moments(self.path.rollouts[name]):
                    if (when, name) not in past:
                        past.add((when, name))
                        self._break(name, when, -(-self.size.many // len(names)))

    def _moments(self, rollout: Rollout) -> Iterator[str]:
        path, due_at = self.path, rollout.step_due_at
        if rollout.phase == Phase.BAKING and path.elapsed_s >= 2 * WARM_UP_S:
            yield "60 s"
            is_due = due_at is not None and due_at.timestamp() - path.now_s <= 2 * INTERVAL_S
            if rollout.step_index == HALF - 1 and is_due:
                yield "three steps"

    def _break(self, name: str, when: str, times: int) -> None:
        for _ in range(times):
            with self.path.fork() as path:
                self.dead[when].append(_dies(path, name))
            if when == "three steps":
                with self.path.fork() as path:
                    self.broken.append(_breaks(path, name))

    def bars(self) -> Iterator[Bar]:
        for when, caught in self.dead.items():
            name = f"dead for 30 s after {when}: rolled back within 10 s of evidence"
            yield share(name, sum(caught), len(caught), 0.99, is_most=False)
        taken = np.array(self.broken)
        caught = np.isfinite(taken)
        name = "1% → 3% in the 50% step"
        yield share(f"{name}: within the step", int(caught.sum()), taken.size, 0.98, is_most=False)
        if self.size.scale_permille < WHOLE_LENGTH:
            # Steps of two minutes leave too little data before the break to compare with the bar,
            # which assumes steps of half an hour.
            return
        requests = taken[caught]
        error = float(requests.std() / np.sqrt(max(1, requests.size)))
        mean = float(requests.mean()) if requests.size else float("nan")
        yield Bar(f"{name}: canary requests", mean, error, 3_000.0, is_share=False)


def is_settled(rollout: Rollout) -> bool:
    """Return whether the rollout is paused or over, and all instances know it."""
    return rollout.phase == Phase.PAUSED or not rollout.is_live


def _dies(path: Path, name: str) -> bool:
    """Fail every canary request for 30 s; return whether 10 s of evidence roll it back.

    Intervals are evaluated whole: the previous evaluation must have had less than 10 s of the
    fault.
    """
    start_s = path.elapsed_s + float(path.rng.uniform(0.0, INTERVAL_S))

    def chance(requests: Requests) -> Array:
        since = requests.at_s - start_s
        return np.where(requests.is_canary & (since >= 0.0) & (since < 30.0), 1.0, 0.01)

    path.traffic[name] = replace(path.traffic[name], fate=failing(chance))
    path.run(80.0, names=[name], until=is_rolled_back)
    rollout = path.rollouts[name]
    if not is_rolled_back(rollout):
        return False
    newest = rollout.intervals.order_by("-started_at")[0].started_at.timestamp() - BEGAN
    return newest - start_s < 10.0


def _breaks(path: Path, name: str) -> float:
    """Return the canary's requests in a 50 % step with 3 % errors; infinite if it passes.

    They include all requests until the rollback, also those after the last evaluated interval.
    """
    rollout = path.rollouts[name]

    def chance(requests: Requests) -> Array:
        return np.where(requests.is_canary & (requests.step == HALF), 0.03, 0.01)

    path.traffic[name] = replace(path.traffic[name], fate=failing(chance))
    path.run(3_600.0, names=[name], until=lambda r: is_rolled_back(r) or r.step_index > HALF)
    if not is_rolled_back(rollout):
        return float("inf")
    rows = TelemetryRow.objects.filter(
        split=str(rollout.pk), variant="canary", generation__gte=rollout.step_generations[HALF]
    )
    return float(rows.aggregate(n=Sum("requests"))["n"])


def _lossy(rng: Rng, size: Size) -> Iterator[Bar]:
    """I: a fifth of the canary's units are lost."""

    def lost(rng: Rng, requests: Requests) -> Flags:
        return requests.is_canary & (rng.random(requests.at_s.size) < 0.2)

    traffic = Traffic(steady(PER_SECOND), failing(lambda requests: 0.01), lost=lost)
    path = _path(rng, {f"lossy-{k}": traffic for k in range(size.few)}, DEFAULT)
    path.run(1_800.0, until=is_over)
    paused = sum(
        each.phase == Phase.PAUSED and each.reason.startswith("sample-ratio")
        for each in path.rollouts.values()
    )
    name = "a fifth of the canary's units is lost: found in the 5% step"
    yield share(name, paused, len(path.rollouts), 0.99, is_most=False)


def _days(rng: Rng, size: Size) -> Iterator[Bar]:
    """J: latency and errors have a daily cycle; a step lasts at least a fiftieth of a day."""
    day_s = DAY_S * size.scale_permille / 1_000
    cases = {}
    for k in range(-(-size.few // 2)):
        phase = rng.uniform(0.0, 2.0 * np.pi)
        cases[f"slow-days-{k}"] = Traffic(
            steady(PER_SECOND), failing(lambda requests: 0.01, _cycle(day_s, phase, 0.5, 1.5))
        )
        cases[f"bad-days-{k}"] = Traffic(
            steady(PER_SECOND), failing(_cycle(day_s, phase, 0.001, 0.03))
        )
    path = _path(rng, cases, msgspec.structs.replace(size.plan, interval_s=60))
    path.run(1.5 * 9_000.0 * size.scale_permille / 1_000, until=is_settled)
    back = sum(map(is_rolled_back, path.rollouts.values()))
    name = "daily cycle of latency (± 50%) or errors (0.1 to 3%): rolled back"
    yield share(name, back, len(cases), 0.005)


def _cycle(day_s: float, phase: float, low: float, high: float) -> Callable[[Requests], Array]:
    def value(requests: Requests) -> Array:
        wave = 0.5 + 0.5 * np.sin(2.0 * np.pi * requests.at_s / day_s + phase)
        result: Array = low + (high - low) * wave
        return result

    return value


def _little(rng: Rng, size: Size) -> Iterator[Bar]:
    """K: three requests per hour, an hourly reconciler, and immediate approvals."""
    path = Path.make(rng, wakes_s=3_600.0)
    for k in range(size.few):
        path.add(f"little-{k}", Traffic(steady(3.0 / 3_600.0), failing(lambda requests: 0.005)))
    path.publish()
    path.run(DAY_S)
    for name in path.traffic:
        path.start(name, LITTLE)
    approver = User.objects.create(username=APPROVER.name)
    ModelRole.objects.create(user=approver, role=Role.OPERATOR, model=None)
    for _ in range(30):
        path.run(DAY_S, until=is_settled)
        for rollout in path.rollouts.values():
            if rollout.phase == Phase.BAKING and "the checks pass" in rollout.reason:
                approve_step(rollout=rollout, actor=APPROVER, now=database_now())
        if all(each.step_index == 1 or is_settled(each) for each in path.rollouts.values()):
            break
    # A few days of the 95 % step.
    path.run(size.few * DAY_S, until=is_settled)
    decided = sum(rollout.approved_step == 0 for rollout in path.rollouts.values())
    back = sum(map(is_rolled_back, path.rollouts.values()))
    n = len(path.rollouts)
    yield share("three requests an hour: the 50% step is decided", decided, n, 0.9, is_most=False)
    yield share("three requests an hour: rolled back", back, n, 0.01)
