"""Advances the time of a fleet and its rollouts: traffic, delivery, ingestion, reports, ticks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import numpy as np
from django.db import transaction

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.models.models import Deployment, ModelVersion, RegisteredModel, ServingCluster
from apps.models.states import DeploymentState
from apps.rollouts import interval_store
from apps.rollouts.divergence import watch_ends, watch_traffic
from apps.rollouts.models import Instance as StoredInstance
from apps.rollouts.models import Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument
from apps.rollouts.publication import latest_table, publish_table, record_report
from apps.rollouts.services import start_rollout
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.tick import tick_one
from bench.path.database import set_clock
from bench.path.fleet import APPLIES_IN_S, Instance
from bench.path.traffic import Rng, Traffic
from contract.messages import STREAM_TELEMETRY, Batch, encode_batch
from contract.routing import decode
from controlplane.ingest import Entry, apply_once, decode_entry

# Monday, 2026-01-05, 06:00 UTC.
BEGAN = datetime(2026, 1, 5, 6, tzinfo=UTC).timestamp()
# The delay from a window's end until its batch is read from Redis.
DELIVERED_IN_S = 0.5
# The time step while no rollout is live.
IDLE_S = 10.0
# The interval of the divergence checks.
WATCHED_EVERY_S = 30.0

# Returns the delivery times of a batch sent at a given time; several if it is repeated.
Delivery = Callable[[Rng, float, Batch], Sequence[float]]


def in_order(rng: Rng, sent_s: float, batch: Batch) -> Sequence[float]:
    """Deliver each batch once, after DELIVERED_IN_S."""
    return (sent_s + DELIVERED_IN_S,)


@dataclass
class Path:
    """A fleet, its models, and their common clock.

    Times are seconds since `BEGAN`.
    """

    rng: Rng
    fleet: list[Instance]
    delivery: Delivery = in_order
    traffic: dict[str, Traffic] = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    now_s: float = BEGAN
    generation: int = 0
    # Batches in transit, by time of arrival.
    mail: list[tuple[float, int, bytes]] = field(default_factory=list)
    sent: int = 0
    # Planned actions on the fleet: (Unix seconds, action).
    plans: list[tuple[float, Callable[[Path], None]]] = field(default_factory=list)
    watched_s: float = BEGAN
    # The interval of the reconciler.
    wakes_s: float = 1.0

    @classmethod
    def make(
        cls,
        rng: Rng,
        instances: int = 4,
        delivery: Delivery = in_order,
        *,
        wakes_s: float = 1.0,
    ) -> Path:
        """Return a path with `instances` instances, which drain in turn, without models."""
        set_clock(BEGAN)
        # An earlier fleet used the same times.
        StoredInstance.objects.all().delete()
        crew = f"{rng.integers(1 << 40):x}-"
        fleet = [Instance(k, crew, phase_s=k / instances, now_s=BEGAN) for k in range(instances)]
        ServingCluster.objects.get_or_create(
            name="simulated",
            defaults={"endpoints": ["http://t:8000"], "repository_path": "/x", "is_default": True},
        )
        return cls(rng, fleet, delivery, wakes_s=wakes_s)

    @property
    def elapsed_s(self) -> float:
        return self.now_s - BEGAN

    def add(self, name: str, traffic: Traffic) -> None:
        """Add a model with a stable version 1 and a version 2, both ready, and its traffic."""
        model = RegisteredModel.objects.create(name=name)
        now = database_now()
        versions = [_version(model, number, now) for number in (1, 2)]
        model.stable = versions[0]
        model.save()
        self.traffic[name] = traffic

    def start(self, name: str, plan: PlanDocument) -> Rollout:
        """Start the rollout of a model's version 2."""
        model = RegisteredModel.objects.get(name=name)
        now = database_now()
        # Each rollout has its own plan with the model's name.
        document = msgspec.structs.replace(plan, name=name)
        stored = save_plan(document=document, is_default=False, actor=INTERLOCK)
        target = model.versions.get(number=2)
        rollout = start_rollout(model=model, target=target, plan=stored, actor=INTERLOCK, now=now)
        # The same units are in the canary in each simulation.
        rollout.salt = name
        rollout.save(update_fields=["salt"])
        self.rollouts[name] = rollout
        return rollout

    def publish(self) -> None:
        """Publish the current table, as the reconciler of deployments does."""
        with transaction.atomic():
            publish_table(reason="simulated", actor=INTERLOCK, now=database_now())

    def at(self, seconds: float, action: Callable[[Path], None]) -> None:
        """Plan an action for a time, which must be a whole second."""
        self.plans.append((BEGAN + seconds, action))
        self.plans.sort(key=lambda plan: plan[0])

    def run(
        self,
        seconds: float,
        *,
        names: Collection[str] | None = None,
        until: Callable[[Rollout], bool] = lambda rollout: not rollout.is_live,
    ) -> None:
        """Advance the time by `seconds`, or until `until` is true for all rollouts in `names`.

        A rollout for which it is true is skipped, and so is its traffic.
        """
        end_s = self.now_s + seconds
        selected = list(names if names is not None else self.rollouts)
        while self.now_s < end_s - 1e-6:
            active = [name for name in selected if not until(self.rollouts[name])]
            if selected and not active:
                return
            self._pass(min(end_s, self._next(active)), active)

    def _next(self, active: Collection[str]) -> float:
        """Return the time of the next action: a check, or a step's clock that may start."""
        rollouts = [self.rollouts[name] for name in active]
        due = [r.next_check_at.timestamp() for r in rollouts if r.next_check_at is not None]
        has_waiting = any(r.next_check_at is None and r.is_live for r in rollouts)
        soon = self.now_s + self.wakes_s
        times = [*due, *([soon] if has_waiting else []), *(at for at, _ in self.plans[:1])]
        first = min(times, default=self.now_s + IDLE_S) - BEGAN
        return max(soon, BEGAN + math.ceil(first / self.wakes_s) * self.wakes_s)

    def _pass(self, until_s: float, active: Collection[str]) -> None:
        self._route()
        traffic = {
            name: each
            for name, each in self.traffic.items()
            if name in active or name not in self.rollouts
        }
        for instance in self.fleet:
            instance.advance(until_s, BEGAN, traffic, self.rng)
            self._post(instance)
        self.now_s = until_s
        set_clock(until_s)
        self._ingest()
        now = database_now()
        for instance in self.fleet:
            if instance.down_until_s <= until_s:
                record_report(instance.report(), now=now)
        while self.plans and self.plans[0][0] <= until_s:
            self.plans.pop(0)[1](self)
        self._watch(now)
        for name in active:
            if tick_one(self.rollouts[name].pk):
                self.rollouts[name].refresh_from_db()

    def _watch(self, now: datetime) -> None:
        """Run the divergence checks, which may pause a rollout."""
        if self.now_s >= self.watched_s + WATCHED_EVERY_S:
            self.watched_s = self.now_s
            watch_traffic(now)
            watch_ends(now)
            for rollout in self.rollouts.values():
                rollout.refresh_from_db()

    def _route(self) -> None:
        """Give a newly published table to the instances, after APPLIES_IN_S."""
        table = latest_table()
        if table is not None and table.generation != self.generation:
            self.generation = table.generation
            document = decode(bytes(table.document))
            for instance in self.fleet:
                instance.tables.append((self.now_s + APPLIES_IN_S, document))

    def _post(self, instance: Instance) -> None:
        for sent_s, batch in instance.batches:
            data = encode_batch(batch)
            for at_s in self.delivery(self.rng, sent_s, batch):
                self.sent += 1
                self.mail.append((at_s, self.sent, data))
        instance.batches.clear()

    def _ingest(self) -> None:
        self.mail.sort()
        here = [mail for mail in self.mail if mail[0] <= self.now_s]
        del self.mail[: len(here)]
        entries = [
            Entry(b"%d" % number, data, decode_entry(STREAM_TELEMETRY, data))
            for _, number, data in here
        ]
        if entries:
            apply_once(STREAM_TELEMETRY, entries)

    @contextmanager
    def fork(self) -> Iterator[Path]:
        """Yield a copy with its own random numbers; roll back all of its changes afterwards."""
        other = copy.deepcopy(self)
        other.rng = np.random.default_rng(int(self.rng.integers(1 << 40)))
        parsed = copy.copy(interval_store._parsed)
        with transaction.atomic():
            yield other
            transaction.set_rollback(True)
        # Restore the worker's cache of parsed intervals.
        interval_store._parsed.clear()
        interval_store._parsed.update(parsed)


def _version(model: RegisteredModel, number: int, now: datetime) -> ModelVersion:
    tensors = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    }
    version = ModelVersion.objects.create(
        model=model,
        number=number,
        signature=tensors,
        artifact_uri="models:/x",
        artifact_path="x",
        artifact_sha256="0" * 64,
        artifact_bytes=1,
        created_at=now,
    )
    Deployment.objects.create(
        version=version,
        cluster=ServingCluster.objects.get(name="simulated"),
        state=DeploymentState.READY,
        changed_at=now,
    )
    return version


def is_rolled_back(rollout: Rollout) -> bool:
    """Return whether the rollout is rolled back or rolling back."""
    return rollout.phase in {Phase.ROLLING_BACK, Phase.ROLLED_BACK}


def is_over(rollout: Rollout) -> bool:
    """Return whether the rollout is decided: rolled back, promoted, or paused."""
    return (
        rollout.phase == Phase.PAUSED
        or is_rolled_back(rollout)
        or (rollout.phase not in LIVE_PHASES or rollout.phase == Phase.PROMOTING)
    )
