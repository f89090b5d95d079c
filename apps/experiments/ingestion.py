"""Exposures and outcomes into rows. Every row is judged for itself: a bad one is refused and
counted with its reason, and never costs the others.

Runs in the caller's transaction. Rows are written in the order of their keys, so that two writers
never wait for each other crosswise.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from apps.experiments.measurements import count_units, measure
from apps.experiments.meetings import SIDES, Meeting, known_salts, write_meetings
from apps.experiments.metrics import why_not_an_outcome
from apps.experiments.models import Experiment, Metric, RefusedOutcomes
from contract.bucketing import bucket
from contract.messages import Batch, Exposure, Outcome
from contract.routing import CANARY

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXT_MAX = 200
NAME_MAX = 100
# Beyond it squares overflow, and no measurement means it.
VALUE_MAX = 1e100
FUTURE_MAX = timedelta(hours=1)
AGE_MAX = timedelta(days=365)
# Refusals of so many unknown metrics are told apart; names come from outside and have no end.
UNKNOWN_METRICS_MAX = 100
OTHER_METRICS = "(other)"

UNKNOWN_METRIC = "unknown metric"

UPSERT_EXPOSURES = """
    INSERT INTO experiments_exposurerow AS kept
        (experiment_id, unit, variant_name, version_number, at, crossed_over, bucket, tenant,
         attributes)
    SELECT * FROM unnest(
        %s::uuid[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::boolean[],
        %s::int[], %s::text[], %s::jsonb[])
    ON CONFLICT (experiment_id, unit) DO UPDATE SET
        at = least(kept.at, excluded.at),
        crossed_over = kept.crossed_over OR excluded.crossed_over
            OR kept.variant_name <> excluded.variant_name
    WHERE excluded.at < kept.at OR excluded.crossed_over
        OR kept.variant_name <> excluded.variant_name
"""
INSERT_OUTCOMES = """
    INSERT INTO experiments_outcomerow (event_id, unit, metric_id, value, occurred_at, received_at)
    SELECT *, clock_timestamp() FROM unnest(
        %s::text[], %s::text[], %s::bigint[], %s::float8[], %s::timestamptz[])
    ON CONFLICT (event_id) DO NOTHING
"""
TOUCH = "INSERT INTO experiments_touchedunit (unit) SELECT * FROM unnest(%s::text[])"
COUNT_REFUSALS = """
    INSERT INTO experiments_refusedoutcomes AS kept (metric_name, reason, count, last_at)
    SELECT name, reason, n, %s FROM unnest(%s::text[], %s::text[], %s::bigint[])
        AS refused(name, reason, n)
    ON CONFLICT (metric_name, reason) DO UPDATE SET
        count = kept.count + excluded.count, last_at = greatest(kept.last_at, excluded.last_at)
"""


@dataclass(frozen=True)
class Met:
    """The first meeting of a unit with an experiment, folded over what arrived."""

    variant: str
    version: str
    at: datetime
    crossed_over: bool = False
    tenant: str = ""
    attributes: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Why the outcome at `index` of a request was not taken."""

    index: int
    event_id: str
    metric: str
    reason: str


@dataclass(frozen=True)
class OutcomeReport:
    """What became of a request's outcomes: each is recorded, a duplicate, or refused."""

    recorded: int = 0
    duplicates: int = 0
    refused: tuple[Refusal, ...] = field(default=())


def apply_exposures(batches: Sequence[Batch], now: datetime) -> Counter[str]:
    """Record the first exposure per unit; return how many were skipped, by reason.

    A unit that met another variant before or after is marked as crossed over. An instant in the
    future is taken as `now`, or no outcome of that unit would ever count. Those to the sides of a
    rollout's split are kept apart (`meetings`).
    """
    exposures = [exposure for batch in batches for exposure in batch.exposures]
    ids = _ids(exposures)
    experiments, salts = _known_experiments(ids.values()), known_salts(ids.values())
    skipped: Counter[str] = Counter()
    met: dict[tuple[UUID, str], Met] = {}
    meetings: list[Meeting] = []
    for exposure in exposures:
        pk, seen = ids.get(exposure.experiment), _met(exposure, now)
        if problem := _exposure_problem(exposure, is_rollout=pk in salts):
            skipped[problem] += 1
        elif pk in experiments:
            met[pk, exposure.unit] = _fold(met.get((pk, exposure.unit)), seen)
        elif pk in salts:
            meetings.append(Meeting(pk, exposure.unit, exposure.variant == CANARY, seen.at))
        else:
            skipped["unknown experiment"] += 1
    _write_exposures(met, experiments)
    write_meetings(meetings, salts)
    measure([each for batch in batches for each in batch.measurements])
    count_units([sketch for batch in batches for sketch in batch.sketches])
    if skipped:
        logger.warning("exposures.skipped %s", dict(skipped))
    return skipped


def _ids(exposures: Iterable[Exposure]) -> dict[str, UUID]:
    """Return what of the splits' ids can be an id."""
    found: dict[str, UUID] = {}
    for text in {exposure.experiment for exposure in exposures}:
        try:
            found[text] = UUID(text)
        except ValueError:
            continue
    return found


def _known_experiments(ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the variant salts of those ids that are experiments."""
    rows = Experiment.objects.filter(pk__in=list(ids))
    return dict(rows.values_list("pk", "variant_salt"))


def _exposure_problem(exposure: Exposure, *, is_rollout: bool) -> str | None:
    if is_rollout and exposure.variant not in SIDES:
        return "variant is no side of a rollout"
    return _text_problem("unit", exposure.unit, TEXT_MAX) or _text_problem(
        "variant", exposure.variant, NAME_MAX
    )


def _met(exposure: Exposure, now: datetime) -> Met:
    oldest = now - AGE_MAX
    at = min(max(_instant(exposure.at_ms) or now, oldest), now)
    given = {
        _clean(name): value.replace("\x00", "")[:NAME_MAX]
        for name, value in exposure.attributes.items()
    }
    attributes = json.dumps(given) if given else None
    return Met(
        exposure.variant,
        exposure.version[:20],
        at,
        tenant=_clean(exposure.tenant),
        attributes=attributes,
    )


def _fold(first: Met | None, other: Met) -> Met:
    if first is None:
        return other
    if other.at < first.at:
        first, other = other, first
    crossed = first.crossed_over or other.crossed_over or first.variant != other.variant
    return replace(first, crossed_over=crossed)


def _write_exposures(met: dict[tuple[UUID, str], Met], salts: dict[UUID, str]) -> None:
    if not met:
        return
    keys = sorted(met)
    rows = [met[key] for key in keys]
    columns: list[list[Any]] = [
        [experiment for experiment, _ in keys],
        [unit for _, unit in keys],
        [row.variant for row in rows],
        [row.version for row in rows],
        [row.at for row in rows],
        [row.crossed_over for row in rows],
        [bucket(salts[experiment], unit) for experiment, unit in keys],
        [row.tenant for row in rows],
        [row.attributes for row in rows],
    ]
    with connection.cursor() as cursor:
        cursor.execute(UPSERT_EXPOSURES, columns)
        cursor.execute(TOUCH, [sorted({unit for _, unit in keys})])


def apply_outcomes(batches: Sequence[Batch], now: datetime) -> OutcomeReport:
    """Record the outcomes of `batches`; see `record_outcomes`."""
    return record_outcomes([outcome for batch in batches for outcome in batch.outcomes], now)


@transaction.atomic
def record_outcomes(outcomes: Sequence[Outcome], now: datetime) -> OutcomeReport:
    """Record each outcome that can be used, count the others by metric and reason.

    The same `event_id` twice, in one call or in two, counts once: the first one stands.
    """
    metrics = {
        metric.name: metric
        for metric in Metric.objects.select_related("outcomes_of").filter(
            name__in={_clean(o.metric) for o in outcomes}
        )
    }
    taken: dict[str, tuple[Outcome, Metric, datetime]] = {}
    refused: list[Refusal] = []
    duplicates = 0
    for index, outcome in enumerate(outcomes):
        metric = metrics.get(outcome.metric)
        reason = refusal_reason(outcome, metric, now)
        if reason is not None or metric is None:
            reason = reason or UNKNOWN_METRIC
            refused.append(Refusal(index, outcome.event_id, outcome.metric, reason))
        elif outcome.event_id in taken:
            duplicates += 1
        else:
            taken[outcome.event_id] = outcome, metric, _instant(outcome.occurred_at_ms) or now
    recorded = _write_outcomes(taken)
    count_refusals(refused, known=set(metrics), now=now)
    return OutcomeReport(recorded, duplicates + len(taken) - recorded, tuple(refused))


def refusal_reason(outcome: Outcome, metric: Metric | None, now: datetime) -> str | None:
    """Return why `outcome` cannot be used, or None. Reasons are few: they are counted."""
    problem = _text_problem("event_id", outcome.event_id, TEXT_MAX) or _text_problem(
        "unit_id", outcome.unit_id, TEXT_MAX
    )
    if problem:
        return problem
    if metric is None:
        return UNKNOWN_METRIC
    if (why := why_not_an_outcome(metric)) is not None:
        return why
    if not math.isfinite(outcome.value):
        return "value is not a finite number"
    if abs(outcome.value) > VALUE_MAX:
        return f"value is beyond {VALUE_MAX:g}"
    if metric.kind == Metric.Kind.PROPORTION and outcome.value not in (0.0, 1.0):
        return "value of a proportion is neither 0 nor 1"
    at = _instant(outcome.occurred_at_ms)
    if at is None or at > now + FUTURE_MAX:
        return "occurred_at is more than an hour in the future"
    if at < now - AGE_MAX:
        return "occurred_at is more than a year ago"
    return None


def _write_outcomes(taken: dict[str, tuple[Outcome, Metric, datetime]]) -> int:
    if not taken:
        return 0
    event_ids = sorted(taken)
    rows = [taken[event_id] for event_id in event_ids]
    columns: list[list[Any]] = [
        event_ids,
        [outcome.unit_id for outcome, _, _ in rows],
        [metric.pk for _, metric, _ in rows],
        [float(outcome.value) for outcome, _, _ in rows],
        [at for _, _, at in rows],
    ]
    with connection.cursor() as cursor:
        cursor.execute(INSERT_OUTCOMES, columns)
        recorded = int(cursor.rowcount)
        cursor.execute(TOUCH, [sorted({outcome.unit_id for outcome, _, _ in rows})])
    return recorded


def count_refusals(refused: Sequence[Refusal], *, known: set[str], now: datetime) -> None:
    """Add refusals to the counts by metric and reason; past a bound, unknown names share one."""
    if not refused:
        return
    strange = {_clean(refusal.metric) for refusal in refused} - known
    told_apart = _told_apart(strange) | known
    counts: Counter[tuple[str, str]] = Counter()
    for refusal in refused:
        name = _clean(refusal.metric)
        counts[name if name in told_apart else OTHER_METRICS, refusal.reason] += 1
    keys = sorted(counts)
    columns: list[list[Any]] = [
        [name for name, _ in keys],
        [why for _, why in keys],
        [counts[key] for key in keys],
    ]
    with connection.cursor() as cursor:
        cursor.execute(COUNT_REFUSALS, [now, *columns])


def _told_apart(names: set[str]) -> set[str]:
    """Return those of the unknown metric `names` that are, or may yet be, counted by name."""
    if not names:
        return set()
    stored = set(
        RefusedOutcomes.objects.filter(reason=UNKNOWN_METRIC).values_list("metric_name", flat=True)
    )
    room = max(0, UNKNOWN_METRICS_MAX - len(stored))
    return (names & stored) | set(sorted(names - stored)[:room])


def _text_problem(name: str, text: str, length_max: int) -> str | None:
    if not text:
        return f"{name} is empty"
    if len(text) > length_max:
        return f"{name} is longer than {length_max} characters"
    return f"{name} holds a NUL character" if "\x00" in text else None


def _clean(name: str) -> str:
    """Return what of an outsider's metric name can stand in a column."""
    return name.replace("\x00", "")[:NAME_MAX]


def _instant(at_ms: int) -> datetime | None:
    """Return the instant, or None when no calendar reaches it."""
    try:
        return EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None
