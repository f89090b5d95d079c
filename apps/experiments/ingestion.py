"""Store exposures and outcomes. Each row is checked independently: a bad one is refused and counted
by reason, and does not affect the others.

Runs in the caller's transaction. Rows are written in key order, so two writers cannot deadlock.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection, transaction

from apps.experiments.bulk_copy import staged
from apps.experiments.lifecycle import TENANT
from apps.experiments.measurements import count_units, measure
from apps.experiments.metrics import outcome_refusal_reason
from apps.experiments.models import Metric
from apps.experiments.refusals import (
    NOWHERE,
    Origin,
    Refusal,
    clean,
    count_instance_refusals,
    count_refusals,
)
from apps.experiments.request_outcomes import Requests
from apps.experiments.rollout_exposures import (
    SIDES,
    SideExposure,
    known_salts,
    write_side_exposures,
)
from apps.experiments.shadow_pairs import write_pairs
from apps.experiments.tenant_scope import IS_NEW, MERGED, event_key, find_foreign_units
from contract.bucketing import bucket
from contract.messages import (
    OUTCOME_AGE_MAX_S,
    OUTCOME_AHEAD_MAX_S,
    OUTCOME_VALUE_MAX,
    Batch,
    Exposure,
    Outcome,
)
from contract.refusals import (
    IN_THE_FUTURE,
    NO_PROPORTION,
    OTHERS_UNIT,
    TOO_OLD,
    UNKNOWN_METRIC,
)
from contract.routing import CANARY

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXT_MAX = 200
NAME_MAX = 100
NOT_KEPT = "occurred_at is older than the retention of outcomes"
FUTURE_MAX = timedelta(seconds=OUTCOME_AHEAD_MAX_S)
AGE_MAX = timedelta(seconds=OUTCOME_AGE_MAX_S)

STAGED_EXPOSURES = {
    "experiment_id": "uuid", "unit": "text", "variant_name": "text", "version_number": "text",
    "at": "timestamptz", "crossed_over": "bool", "bucket": "int8", "tenant": "text",
    "also_tenants": "text[]", "attributes": "text",
}  # fmt: skip
# Only units that changed are marked as touched; a repeated exposure costs no fold.
UPSERT_EXPOSURES = f"""
    WITH written AS (
        INSERT INTO experiments_exposurerow AS kept
            (experiment_id, unit, variant_name, version_number, at, crossed_over, bucket, tenant,
             also_tenants, attributes)
        SELECT experiment_id, unit, variant_name, version_number, at, crossed_over, bucket, tenant,
            also_tenants, attributes::jsonb
        FROM staged_exposures
        ON CONFLICT (experiment_id, unit) DO UPDATE SET
            at = least(kept.at, excluded.at),
            crossed_over = kept.crossed_over OR excluded.crossed_over
                OR kept.variant_name <> excluded.variant_name,
            also_tenants = {MERGED}
        WHERE excluded.at < kept.at OR excluded.crossed_over
            OR kept.variant_name <> excluded.variant_name OR {IS_NEW}
        RETURNING unit
    )
    INSERT INTO experiments_touchedunit (unit) SELECT DISTINCT unit FROM written
"""  # noqa: S608 (constant conditions)
STAGED_OUTCOMES = {
    "event_id": "text", "unit": "text", "metric_id": "int8", "value": "float8",
    "occurred_at": "timestamptz", "version_id": "int8", "answered_at": "timestamptz",
    "request_hash": "int8", "tenant": "text", "models_opened": "text[]",
}  # fmt: skip
INSERT_OUTCOMES = """
    WITH written AS (
        INSERT INTO experiments_outcomerow
            (event_id, unit, metric_id, value, occurred_at, received_at, request_hash, tenant,
             models_opened)
        SELECT event_id, unit, metric_id, value, occurred_at, clock_timestamp(), request_hash,
            tenant, models_opened
        FROM staged_outcomes
        ON CONFLICT (event_id) DO NOTHING
        RETURNING event_id, unit
    ), touched AS (
        INSERT INTO experiments_touchedunit (unit)
        SELECT DISTINCT unit FROM written WHERE unit <> ''
    ), counted AS (
        INSERT INTO experiments_versionoutcomes AS kept (version_id, metric_id, hour, n, total)
        SELECT version_id, metric_id, date_trunc('hour', answered_at, 'UTC'), count(*), sum(value)
        FROM staged_outcomes JOIN written USING (event_id) WHERE version_id IS NOT NULL
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (version_id, metric_id, hour) DO UPDATE SET
            n = kept.n + excluded.n, total = kept.total + excluded.total
    )
    SELECT count(*) FROM written
"""
# As a foreign key would: the referenced rows cannot be deleted before our rows are committed.
LOCK_EXPERIMENTS = """
    SELECT id, variant_salt, dimensions FROM experiments_experiment WHERE id = ANY(%s)
    ORDER BY id FOR KEY SHARE
"""
LOCK_METRICS = "SELECT id FROM experiments_metric WHERE name = ANY(%s) ORDER BY id FOR KEY SHARE"


@dataclass(frozen=True)
class ExperimentKeys:
    """An experiment's variant salt, and the headers among its dimensions."""

    salt: str
    headers: frozenset[str]


@dataclass(frozen=True)
class FirstExposure:
    """The first exposure of a unit to an experiment, folded over the exposures that arrived."""

    variant: str
    version: str
    at: datetime
    crossed_over: bool = False
    tenant: str = ""
    attributes: str | None = None
    # Other tenants that sent requests for the unit.
    others: frozenset[str] = frozenset()


@dataclass(frozen=True)
class OutcomeReport:
    """Counts of a request's outcomes: each is recorded, a duplicate, or refused.

    `unexposed` are the positions of accepted outcomes whose unit has no exposure to an experiment
    that is still analysed.
    """

    recorded: int = 0
    duplicates: int = 0
    refused: tuple[Refusal, ...] = field(default=())
    unexposed: tuple[int, ...] = field(default=())


def apply_exposures(batches: Sequence[Batch], now: datetime) -> Counter[str]:
    """Record the first exposure per unit; return the number of skipped exposures by reason.

    A unit with exposures to several variants is marked as crossed over. A timestamp in the future
    is replaced by `now`, or no outcome of that unit would ever count. Exposures to the sides of a
    rollout's split are stored separately (`rollout_exposures`).
    """
    exposures = [exposure for batch in batches for exposure in batch.exposures]
    ids = _ids(exposures)
    experiments, salts = _lock_experiments(ids.values()), known_salts(ids.values())
    skipped: Counter[str] = Counter()
    first: dict[tuple[UUID, str], FirstExposure] = {}
    sides: list[SideExposure] = []
    for exposure in exposures:
        pk = ids.get(exposure.experiment)
        if problem := _exposure_problem(exposure, is_rollout=pk in salts):
            skipped[problem] += 1
        elif pk in experiments:
            new = _first_exposure(exposure, now, experiments[pk].headers)
            first[pk, exposure.unit] = _fold(first.get((pk, exposure.unit)), new)
        elif pk in salts:
            at, tenant = _exposed_at(exposure, now), clean(exposure.tenant)
            sides.append(SideExposure(pk, exposure.unit, exposure.variant == CANARY, at, tenant))
        else:
            skipped["unknown experiment"] += 1
    _write_exposures(first, experiments)
    write_side_exposures(sides, salts)
    measure([each for batch in batches for each in batch.measurements])
    count_units([sketch for batch in batches for sketch in batch.sketches])
    write_pairs([pair for batch in batches for pair in batch.pairs], now)
    if skipped:
        logger.warning("exposures.skipped %s", dict(skipped))
    return skipped


def _ids(exposures: Iterable[Exposure]) -> dict[str, UUID]:
    """Return the splits' ids that are valid UUIDs, by their text."""
    ids: dict[str, UUID] = {}
    for text in {exposure.experiment for exposure in exposures}:
        try:
            ids[text] = UUID(text)
        except ValueError:
            continue
    return ids


def _lock_experiments(ids: Iterable[UUID]) -> dict[UUID, ExperimentKeys]:
    """Return the keys of those ids that are experiments; locks their rows until the commit."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK_EXPERIMENTS, [list(ids)])
        return {
            pk: ExperimentKeys(salt, frozenset(json.loads(dimensions)) - {TENANT})
            for pk, salt, dimensions in cursor.fetchall()
        }


def _exposure_problem(exposure: Exposure, *, is_rollout: bool) -> str | None:
    if is_rollout and exposure.variant not in SIDES:
        return "variant is not a side of a rollout"
    return _text_problem("unit", exposure.unit, TEXT_MAX) or _text_problem(
        "variant", exposure.variant, NAME_MAX
    )


def _first_exposure(exposure: Exposure, now: datetime, headers: frozenset[str]) -> FirstExposure:
    attributes = {
        name: value.replace("\x00", "")[:NAME_MAX]
        for name, value in exposure.attributes.items()
        if name in headers
    }
    return FirstExposure(
        exposure.variant,
        exposure.version[:20],
        _exposed_at(exposure, now),
        tenant=clean(exposure.tenant),
        attributes=msgspec.json.encode(attributes).decode() if attributes else None,
    )


def _exposed_at(exposure: Exposure, now: datetime) -> datetime:
    return min(max(_timestamp(exposure.at_ms) or now, now - AGE_MAX), now)


def _fold(first: FirstExposure | None, other: FirstExposure) -> FirstExposure:
    if first is None:
        return other
    if other.at < first.at:
        first, other = other, first
    crossed = first.crossed_over or other.crossed_over or first.variant != other.variant
    others = (first.others | other.others | {other.tenant}) - {first.tenant}
    return replace(first, crossed_over=crossed, others=others)


def _write_exposures(
    first: dict[tuple[UUID, str], FirstExposure], experiments: dict[UUID, ExperimentKeys]
) -> None:
    if not first:
        return
    rows = (
        (
            key[0], key[1], row.variant, row.version, row.at, row.crossed_over,
            bucket(experiments[key[0]].salt, key[1]), row.tenant, sorted(row.others) or None,
            row.attributes,
        )
        for key, row in sorted(first.items(), key=itemgetter(0))
    )  # fmt: skip
    with staged("staged_exposures", STAGED_EXPOSURES, rows) as cursor:
        cursor.execute(UPSERT_EXPOSURES)


def apply_outcomes(batches: Sequence[Batch], now: datetime) -> OutcomeReport:
    """Record the outcomes of `batches` (see `record_outcomes`); count the instances' refusals."""
    origins = [
        Origin(outcome.tenant or "", batch.instance)
        for batch in batches
        for outcome in batch.outcomes
    ]
    outcomes = [outcome for batch in batches for outcome in batch.outcomes]
    report = record_outcomes(outcomes, now, origins)
    count_instance_refusals(batches, now)
    return report


@transaction.atomic
def record_outcomes(
    outcomes: Sequence[Outcome], now: datetime, origins: Origin | Sequence[Origin] = NOWHERE
) -> OutcomeReport:
    """Record each valid outcome; count the refused ones by metric, reason and origin.

    `origins` is one for all outcomes, or one per outcome. A repeated `event_id`, in one call or in
    two, counts once: the first outcome is kept.
    """
    requests = Requests(outcomes, now)
    judge = Judge(_lock_metrics({outcome.metric for outcome in outcomes}), now)
    accepted: dict[str, Outcome] = {}
    places: dict[str, int] = {}
    refused: list[Refusal] = []
    duplicates = 0
    for index, outcome in enumerate(outcomes):
        reason = requests.refusal_reason(outcome) or judge.refusal_reason(outcome)
        if reason is not None:
            origin = _origin(origins, index)
            refused.append(Refusal(index, outcome.event_id, outcome.metric, reason, origin))
        elif (key := event_key(outcome)) in accepted:
            duplicates += 1
        else:
            accepted[key] = requests.resolve(outcome)
            places[key] = index
    recorded = _write_outcomes(accepted, judge.metrics, requests)
    foreign = [
        Refusal(places[key], each.event_id, each.metric, OTHERS_UNIT, _origin(origins, places[key]))
        for key, each in _foreign_outcomes(accepted).items()
    ]
    count_refusals([*refused, *foreign], known=set(judge.metrics), now=now)
    return OutcomeReport(recorded, duplicates + len(accepted) - recorded, tuple(refused))


def _origin(origins: Origin | Sequence[Origin], index: int) -> Origin:
    return origins if isinstance(origins, Origin) else origins[index]


def _foreign_outcomes(accepted: dict[str, Outcome]) -> dict[str, Outcome]:
    """Return the outcomes of other tenants' units: they are stored, and counted as refused."""
    foreign = find_foreign_units(accepted.values())
    return {key: each for key, each in accepted.items() if (each.unit_id, each.tenant) in foreign}


def _lock_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return the metrics that exist, by name; locks their rows until the commit."""
    cleaned = sorted({clean(name) for name in names})
    with connection.cursor() as cursor:
        cursor.execute(LOCK_METRICS, [cleaned])
    rows = Metric.objects.select_related("outcomes_of").filter(name__in=cleaned)
    return {metric.name: metric for metric in rows}


class Judge:
    """Checks outcomes one by one. Reasons are few, because refusals are counted by reason."""

    def __init__(self, metrics: dict[str, Metric], now: datetime) -> None:
        self.metrics = metrics
        # Reasons that hold for all outcomes of a metric are computed once.
        self._metric_reasons = {
            name: outcome_refusal_reason(each) for name, each in metrics.items()
        }
        self._proportions = {n for n, m in metrics.items() if m.kind == Metric.Kind.PROPORTION}
        self._newest_ms = _milliseconds(now + FUTURE_MAX)
        # An outcome past its retention could come again and count twice.
        self._retention = timedelta(days=settings.RETENTION_DAYS["outcomes"]) or AGE_MAX
        self._oldest_ms = _milliseconds(now - min(AGE_MAX, self._retention))

    def refusal_reason(self, outcome: Outcome) -> str | None:
        """Return why `outcome` is refused, or None."""
        problem = _text_problem("event_id", outcome.event_id, TEXT_MAX)
        # An outcome of a request needs no unit: it counts for the version.
        if problem is None and (outcome.unit_id or not outcome.request_id):
            problem = _text_problem("unit_id", outcome.unit_id, TEXT_MAX)
        if problem:
            return problem
        metric_reason = self._metric_reasons.get(outcome.metric, UNKNOWN_METRIC)
        if metric_reason is not None:
            return metric_reason
        if not math.isfinite(outcome.value):
            return "value is not a finite number"
        if abs(outcome.value) > OUTCOME_VALUE_MAX:
            return f"value is beyond {OUTCOME_VALUE_MAX:g}"
        if outcome.metric in self._proportions and outcome.value not in (0.0, 1.0):
            return NO_PROPORTION
        if outcome.occurred_at_ms > self._newest_ms:
            return IN_THE_FUTURE
        if outcome.occurred_at_ms < self._oldest_ms:
            return TOO_OLD if self._retention >= AGE_MAX else NOT_KEPT
        return None


def _write_outcomes(
    accepted: dict[str, Outcome], metrics: dict[str, Metric], requests: Requests
) -> int:
    if not accepted:
        return 0
    ids = {name: metric.pk for name, metric in metrics.items()}
    rows = (
        (
            event_id, each.unit_id, ids[each.metric], float(each.value),
            EPOCH + timedelta(milliseconds=each.occurred_at_ms), *_answer_columns(requests, each),
            each.tenant, list(each.models) or None,
        )
        for event_id, each in sorted(accepted.items(), key=itemgetter(0))
    )  # fmt: skip
    with staged("staged_outcomes", STAGED_OUTCOMES, rows) as cursor:
        cursor.execute(INSERT_OUTCOMES)
        return int(cursor.fetchone()[0])


def _answer_columns(
    requests: Requests, outcome: Outcome
) -> tuple[int | None, datetime | None, int | None]:
    """Return version id, time of the answer and request hash of an outcome's request."""
    answer = requests.answer(outcome)
    if answer is None:
        return None, None, None
    at = EPOCH + timedelta(milliseconds=answer.at_ms)
    return answer.version_id, at, answer.request_hash


def _text_problem(name: str, text: str, length_max: int) -> str | None:
    if not text:
        return f"{name} is empty"
    if len(text) > length_max:
        return f"{name} is longer than {length_max} characters"
    return f"{name} holds a NUL character" if "\x00" in text else None


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000)


def _timestamp(at_ms: int) -> datetime | None:
    """Return the timestamp, or None outside the range of datetime."""
    try:
        return EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None
