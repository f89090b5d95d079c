"""Writes rows like those of a fleet for `growth`, with the product's own ingestion and models."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection, transaction

from apps.experiments.ingestion import apply_exposures, apply_outcomes
from apps.experiments.models import Experiment, Metric
from apps.lib.partitions import list_leaves
from apps.models.models import AuditEntry, ModelVersion, RegisteredModel
from apps.rollouts.evidence import Arm
from apps.rollouts.ingestion import apply_windows
from apps.rollouts.interval_store import _to_json
from apps.rollouts.models import Evaluation, IngestedBatch, ObservedInterval, Rollout
from contract.messages import (
    SKETCH_K,
    Batch,
    ClusterCounts,
    Ends,
    Exposure,
    Outcome,
    ShadowPair,
    ShadowWindow,
    TelemetryWindow,
    UnitMeasurement,
    UnitSketch,
)

STEP = 1_000
# The number of histogram buckets in use, for responses within 1 to 100 ms.
BUCKETS = 40
SPLIT = UUID("11111111-1111-4111-8111-111111111111")
CHECKS = ("error_rate", "latency_p95", "sample_ratio", "outcome revenue")
NOW = datetime.now(UTC)
NOW_MS = round(NOW.timestamp() * 1_000)


class Rows:
    """Fills a new database with `rows` rows per table."""

    def __init__(self, rows: int, rng: Random) -> None:
        self._rows = rows
        self._rng = rng
        self._sequence = count(1)
        self._model = RegisteredModel.objects.create(name="digits")
        version = ModelVersion.objects.create(
            model=self._model, number=1, signature={}, artifact_uri="", artifact_path="",
            artifact_sha256="0" * 64, artifact_bytes=1, created_at=NOW,
        )  # fmt: skip
        self._rollout = Rollout.objects.create(
            id=SPLIT, model=self._model, target=version, salt="s", started_at=NOW, started_by="b"
        )
        self._experiment = Experiment.objects.create(
            name="prices", model=self._model, variant_salt="v", created_at=NOW, created_by="b"
        )
        Metric.objects.create(name="revenue", kind=Metric.Kind.MEAN)

    def days(self, kind: str) -> int:
        """Return the retention of the kind in days; 0 means for ever."""
        return int(settings.RETENTION_DAYS[kind])

    def size(self, table: str) -> tuple[int, int, int]:
        """Return a table's rows, its bytes with indexes, and the bytes of its indexes."""
        with connection.cursor() as cursor:
            cursor.execute(f"VACUUM ANALYZE {table}")
            cursor.execute(f"SELECT count(*) FROM {table}")
            rows = cursor.fetchone()[0]
            cursor.execute(
                "SELECT sum(pg_total_relation_size(leaf)), sum(pg_indexes_size(leaf)) "
                "FROM unnest(%s::regclass[]) AS leaf",
                [list_leaves(table)],
            )
            size, indexes = cursor.fetchone()
        return int(rows), int(size), int(indexes)

    def fill(self) -> None:
        """Write rows to all tables."""
        for size in self._parts():
            with transaction.atomic():
                apply_windows([self._telemetry(size)], NOW)
                apply_outcomes([self._batch(outcomes=self._repeat(self._outcome, size))], NOW)
                apply_exposures([self._exposure_batch(size)], NOW)
                self._log(size)
        IngestedBatch.objects.bulk_create(
            IngestedBatch(stream="interlock:telemetry", instance=f"dataplane-{n % 40}.example",
                          boot="6b05f2edff6d9106", sequence=n)
            for n in range(self._rows)
        )  # fmt: skip
        self._people()

    def _parts(self) -> Iterator[int]:
        for start in range(0, self._rows, STEP):
            yield min(STEP, self._rows - start)

    def _batch(self, **lists: Any) -> Batch:
        return Batch(
            instance="dataplane-7.example", boot="6b05f2edff6d9106",
            sequence=next(self._sequence), **lists,
        )  # fmt: skip

    @staticmethod
    def _repeat(make: Any, size: int) -> tuple[Any, ...]:
        return tuple(make() for _ in range(size))

    def _latency(self, buckets: int = BUCKETS) -> dict[int, int]:
        return {80 + n: self._rng.randrange(1, 60) for n in range(buckets)}

    def _clusters(self) -> dict[int, ClusterCounts]:
        return {n: ClusterCounts(3, 4, 0, 4, 0, self._latency(4)) for n in range(32)}

    def _telemetry(self, size: int) -> Batch:
        windows = tuple(self._window(in_split=n % 11 == 0) for n in range(size))
        return self._batch(windows=windows, shadows=self._repeat(self._shadow, size))

    def _window(self, *, in_split: bool) -> TelemetryWindow:
        requests = self._rng.randrange(60, 160)
        return TelemetryWindow(
            model="digits", version="1", variant="canary" if in_split else "stable",
            generation=42, split=str(SPLIT) if in_split else "", started_at_ms=NOW_MS - 1_000,
            ended_at_ms=NOW_MS, interval_started_at_ms=NOW_MS - 5_000, requests=requests,
            units=80, anonymous=5, assigned=85, assigned_requests=requests,
            ends=Ends(answered=requests), latency=self._latency(),
            clusters=self._clusters() if in_split else {},
        )  # fmt: skip

    def _shadow(self) -> ShadowWindow:
        return ShadowWindow(
            model="digits", version="2", stable="1", generation=42, shadow=str(SPLIT),
            started_at_ms=NOW_MS - 1_000, ended_at_ms=NOW_MS, compared=90, rows=90, flips=1,
            beyond_tolerance=2, largest_difference=0.1, latency=self._latency(),
        )  # fmt: skip

    def _unit(self) -> str:
        return f"user-{self._rng.getrandbits(48):012x}"

    def _outcome(self) -> Outcome:
        return Outcome(
            event_id=str(UUID(int=self._rng.getrandbits(128))), unit_id=self._unit(),
            metric="revenue", value=self._rng.expovariate(0.1), occurred_at_ms=NOW_MS,
        )  # fmt: skip

    def _exposure_batch(self, size: int) -> Batch:
        """Return exposures of an experiment and a rollout, measurements, pairs and sketches."""
        units = [self._unit() for _ in range(size)]
        key = str(self._experiment.pk)
        exposures = [
            Exposure(experiment=key, unit=unit, variant="control", version="1", at_ms=NOW_MS,
                     tenant="shop", attributes={})
            for unit in units
        ]  # fmt: skip
        exposures += [
            Exposure(experiment=str(SPLIT), unit=unit, variant="canary", version="2",
                     at_ms=NOW_MS)
            for unit in units
        ]  # fmt: skip
        measured = (
            UnitMeasurement(experiment=key, unit=unit, variant="control", requests=3,
                            latency_us=90_000)
            for unit in units
        )  # fmt: skip
        pairs = (
            ShadowPair(shadow=str(SPLIT), request=f"{self._rng.getrandbits(64):x}", at_ms=NOW_MS,
                       unit=unit, stable_class=1.0, shadow_class=1.0)
            for unit in units
        )  # fmt: skip
        return self._batch(
            exposures=tuple(exposures), measurements=tuple(measured), pairs=tuple(pairs),
            sketches=self._repeat(self._sketch, 100),
        )  # fmt: skip

    def _sketch(self) -> UnitSketch:
        smallest = sorted(self._rng.sample(range(2**50), SKETCH_K))
        hour = NOW_MS // 3_600_000 - next(self._sequence)
        return UnitSketch(model="digits", hour=hour, smallest=tuple(smallest))

    def _log(self, size: int) -> None:
        """Write evaluations with their inputs, and a quarter as many intervals."""
        Evaluation.objects.bulk_create(
            Evaluation(
                rollout=self._rollout, step_index=0, check_name=CHECKS[n % len(CHECKS)],
                verdict="insufficient-sample", rule="too few yet: it goes on", at=NOW,
                reason="error rate 0.61% vs stable 0.58%, margin 1.00%, n=18,420; e-value 3.2",
                evidence={name: self._rng.random() for name in "abcdefghijklmnop"},
                inputs={"intervals": n, "reference": {"p50": 100, "p95": 130, "p99": 150,
                        "n": 20_000, "frozen_at": NOW.isoformat(), "since": NOW.isoformat()},
                        "reference_requests": 20_000, "is_fresh": True, "timeout_s": 1.0,
                        "before": {name: self._rng.random() for name in "abcdef"},
                        "observation": {}},
            )
            for n in range(size)
        )  # fmt: skip
        start = NOW - timedelta(days=self._rng.randrange(10_000_000) / 10)
        arm = Arm(900, 3, 1_000, self._latency(), 900, 2, self._clusters(), [], {})
        first = ObservedInterval.objects.count()
        ObservedInterval.objects.bulk_create(
            ObservedInterval(
                rollout=self._rollout, ordinal=first + n, step_index=0,
                started_at=start + timedelta(seconds=10 * n),
                canary=_to_json(arm, [100, 130, 150]), control=_to_json(arm, [100, 130, 150]),
            )
            for n in range(size // 4)
        )  # fmt: skip

    def _people(self) -> None:
        AuditEntry.objects.bulk_create(
            AuditEntry(actor="anna@example.com", origin="192.0.2.17", action="rollout.started",
                       target="digits:4", before={}, after={"plan": "canary", "revision": n})
            for n in range(self._rows // 4)
        )  # fmt: skip
        Session.objects.bulk_create(
            Session(session_key=f"{n:032x}", session_data="x" * 220, expire_date=NOW)
            for n in range(self._rows // 4)
        )
