"""Batches as data planes send them, and tables with many rows, for `bench ingest`."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from uuid import UUID

import redis
from django.db import connection

from apps.experiments.models import Experiment, Metric, MetricUse, Variant
from apps.identity.tokens import adopt_token
from apps.lib.actors import Actor
from apps.models.models import ModelVersion, RegisteredModel
from contract.message_signatures import SEAL_FIELD, Sealer
from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    Batch,
    Exposure,
    Outcome,
    encode_batch,
)

OUTCOMES, EXPOSURES, MIXED, SINGLE = "outcomes", "exposures", "both", "outcomes, one an entry"
KINDS = (OUTCOMES, EXPOSURES, MIXED, SINGLE)
METRICS = ("bought", "amount", "minutes")
VARIANTS = ("weak", "strong")
PER_ENTRY = 100
INSTANCE = "proxy"
TENANTS = tuple(f"tenant-{i}" for i in range(20))
COUNTRIES = ("de", "fr", "pl", "us", "br", "jp")

FILL_EXPOSURES = """
    INSERT INTO experiments_exposurerow
        (experiment_id, unit, variant_name, version_number, at, crossed_over, bucket)
    SELECT %s, 'unit-' || i, 'weak', '1', now(), false, i %% 10000
    FROM generate_series(%s, %s) AS made(i) ON CONFLICT DO NOTHING
"""
# In the order of identifiers, since random access to the index would take minutes.
FILL_OUTCOMES = """
    INSERT INTO experiments_outcomerow (event_id, unit, metric_id, value, occurred_at, received_at)
    SELECT md5(i::text)::uuid::text, 'unit-' || i, %s, 1, now(), now()
    FROM generate_series(%s, %s) AS made(i) ORDER BY 1
"""

Entries = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Setup:
    """The experiment and the metrics of the events."""

    experiment: str
    metrics: tuple[Metric, ...]
    # The sealer of the instance that sends the events.
    sealer: Sealer


def create_setup() -> Setup:
    """Create a running experiment with two variants and three metrics."""
    now = datetime.now(UTC)
    model = RegisteredModel.objects.create(name="digits")
    experiment = Experiment.objects.create(
        name="ingest", model=model, state="running", inclusion_salt="a", variant_salt="b",
        dimensions=["tenant", "country"], created_by="bench", created_at=now, started_at=now,
    )  # fmt: skip
    for place, name in enumerate(VARIANTS):
        version = ModelVersion.objects.create(
            model=model, number=place + 1, signature={}, artifact_uri="x", artifact_path="x",
            artifact_sha256="0" * 64, artifact_bytes=1, created_at=now,
        )  # fmt: skip
        Variant.objects.create(
            experiment=experiment, name=name, version=version, weight_bp=5_000, position=place,
            is_control=place == 0,
        )  # fmt: skip
    kinds = (Metric.Kind.PROPORTION, Metric.Kind.MEAN, Metric.Kind.MEAN)
    metrics = tuple(
        Metric.objects.create(name=name, kind=kind)
        for name, kind in zip(METRICS, kinds, strict=True)
    )
    for place, metric in enumerate(metrics):
        role = MetricUse.SECONDARY if place else MetricUse.PRIMARY
        MetricUse.objects.create(experiment=experiment, metric=metric, role=role, position=place)
    token = secrets.token_urlsafe(32)
    adopt_token(instance=INSTANCE, secret=token, actor=Actor("bench", "bench"), now=now)
    return Setup(str(experiment.pk), metrics, Sealer(token, f"{INSTANCE}/0", "bench", "bench"))


def grow(setup: Setup, before: int, rows: int) -> None:
    """Grow both tables from `before` to `rows` rows."""
    if rows <= before:
        return
    with connection.cursor() as cursor:
        cursor.execute(FILL_EXPOSURES, [setup.experiment, before + 1, rows])
        cursor.execute(FILL_OUTCOMES, [setup.metrics[0].pk, before + 1, rows])
        cursor.execute("TRUNCATE experiments_touchedunit")
        cursor.execute("ANALYZE experiments_exposurerow, experiments_outcomerow")
        # Write dirty pages now, so that they do not affect the next measurement.
        cursor.execute("CHECKPOINT")


class Events:
    """Creates new events of units, some of which have exposures."""

    def __init__(self, setup: Setup, seed: int = 5) -> None:
        self._setup = setup
        self._rng = random.Random(seed)
        self._sequence = count(1)
        # Each exposure is the first one of a new unit.
        self._unit = count(1)

    def entries(self, kind: str, events: int) -> Entries:
        """Return the stream entries of `events` events."""
        if kind == MIXED:
            both = zip(
                self.entries(OUTCOMES, events // 2),
                self.entries(EXPOSURES, events // 2),
                strict=True,
            )
            return [entry for pair in both for entry in pair]
        size = 1 if kind == SINGLE else PER_ENTRY
        return [self._entry(kind, size) for _ in range(events // size)]

    def _entry(self, kind: str, size: int) -> tuple[str, bytes]:
        is_exposures = kind == EXPOSURES
        stream = STREAM_EXPOSURES if is_exposures else STREAM_OUTCOMES
        sequence = next(self._sequence)
        common = {"instance": f"{INSTANCE}/{sequence % 4}", "boot": "bench", "sequence": sequence}
        if is_exposures:
            exposures = tuple(self._exposure() for _ in range(size))
            return stream, encode_batch(Batch(**common, exposures=exposures))  # type: ignore[arg-type]
        outcomes = tuple(self._outcome() for _ in range(size))
        return stream, encode_batch(Batch(**common, outcomes=outcomes))  # type: ignore[arg-type]

    def _exposure(self) -> Exposure:
        rng = self._rng
        return Exposure(
            experiment=self._setup.experiment,
            unit=f"user-{next(self._unit):08}-{rng.getrandbits(32):08x}",
            variant=VARIANTS[rng.getrandbits(1)],
            version="1",
            at_ms=_now_ms(),
            tenant=rng.choice(TENANTS),
            attributes={"country": rng.choice(COUNTRIES)},
        )

    def _outcome(self) -> Outcome:
        place = self._rng.randrange(3)
        value = float(self._rng.getrandbits(1)) if place == 0 else self._rng.expovariate(0.1)
        return Outcome(
            event_id=str(UUID(int=self._rng.getrandbits(128))),
            unit_id=f"unit-{self._rng.randrange(1_000_000)}",
            metric=METRICS[place],
            value=value,
            occurred_at_ms=_now_ms(),
        )


def _now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1_000)


def send(client: redis.Redis[bytes], entries: Iterable[tuple[str, bytes]], sealer: Sealer) -> None:
    """Add the sealed entries to their streams."""
    for part in _parts(list(entries), 1_000):
        pipe = client.pipeline(transaction=False)
        for stream, data in part:
            pipe.xadd(stream, {FIELD: data, SEAL_FIELD: sealer.seal(stream, data, _now_ms())})
        pipe.execute()


def _parts(entries: Entries, size: int) -> Iterator[Entries]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
