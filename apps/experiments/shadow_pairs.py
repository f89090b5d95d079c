"""Stores the paired predictions of stable and a rollout's shadow, and compares them with labels.

The label of a pair is the first outcome with its request id, else the first outcome of its unit
after the prediction without a request id. Only the first pair of each unit is kept, since the
requests of one unit are similar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection
from xxhash import xxh3_64_intdigest

from apps.experiments.models import Metric
from apps.experiments.rollout_models import ShadowPairRow
from apps.experiments.unit_sketches import to_signed
from apps.rollouts.models import Rollout
from apps.rollouts.paired import GRID
from apps.rollouts.verdicts import JSON
from contract.messages import ShadowPair

UNIT_MAX = 200
TENANT_MAX = 100
# The maximum number of pairs per rollout: more add little, and each evaluation reads all of them.
PAIRS_MAX = 50_000
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

INSERT = """
    INSERT INTO experiments_shadowpairrow
        (rollout_id, unit, request_hash, at, tenant, stable_class, shadow_class, stable_score,
         shadow_score)
    SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bigint[], %s::timestamptz[], %s::text[],
        %s::float8[], %s::float8[], %s::float8[], %s::float8[])
    ON CONFLICT DO NOTHING
"""
# Two joins, since no index serves both. An outcome with the request id has precedence; the data
# plane accepts it only from the sender of that request.
LABELLED = """
    WITH pair AS (
        SELECT id, unit, request_hash, at, tenant, {answer_of_stable} AS stable,
            {answer_of_shadow} AS shadow
        FROM experiments_shadowpairrow WHERE rollout_id = %(rollout)s
            AND {answer_of_stable} IS NOT NULL AND {answer_of_shadow} IS NOT NULL
    ), labelled AS (
        SELECT pair.id, pair.stable, pair.shadow, outcome.value,
            outcome.request_hash IS NULL AS later, outcome.occurred_at, outcome.event_id
        FROM pair JOIN experiments_outcomerow AS outcome
            ON outcome.unit = pair.unit AND outcome.metric_id = %(metric)s
        WHERE pair.unit <> '' AND (outcome.request_hash = pair.request_hash OR (
            outcome.request_hash IS NULL
            AND coalesce(outcome.tenant = pair.tenant, TRUE)
            AND coalesce(%(model)s = ANY(outcome.models_opened), TRUE)
            AND outcome.occurred_at >= pair.at - %(skew_s)s * interval '1 second'
            AND (%(window_s)s::int IS NULL
                OR outcome.occurred_at < pair.at + %(window_s)s::int * interval '1 second')))
        UNION ALL
        SELECT pair.id, pair.stable, pair.shadow, outcome.value, FALSE, outcome.occurred_at,
            outcome.event_id
        FROM pair JOIN experiments_outcomerow AS outcome
            ON outcome.unit = '' AND outcome.request_hash = pair.request_hash
        WHERE outcome.metric_id = %(metric)s
    ), truth AS (
        SELECT DISTINCT ON (id) stable, shadow, value FROM labelled
        ORDER BY id, later, occurred_at, event_id
    )
"""
# By class, a pair is lost if only stable was right.
COUNT_CLASSES = """
    SELECT {grid} * ((stable = value)::int - (shadow = value)::int) AS place, count(*), 0.0,
        count(*) FILTER (WHERE stable = value AND shadow <> value),
        count(*) FILTER (WHERE stable <> value AND shadow = value)
    FROM truth GROUP BY 1
"""
# By score, a pair is lost if stable was closer. The loss is a share of the scale, at most 1.
COUNT_SCORES = """
    , measured AS (
        SELECT abs(stable - value) AS stable_off, abs(shadow - value) AS shadow_off,
            {grid} * (least(1.0, abs(shadow - value) / %(scale)s)
                - least(1.0, abs(stable - value) / %(scale)s)) AS x
        FROM truth
    )
    SELECT floor(x)::int AS place, count(*), sum(x - floor(x)),
        count(*) FILTER (WHERE shadow_off > stable_off),
        count(*) FILTER (WHERE shadow_off < stable_off)
    FROM measured GROUP BY 1
"""


@dataclass(frozen=True)
class LabelledPairs:
    """The counts of a rollout's pairs.

    `kept` have a prediction of this type from both versions, `unreadable` have not. `pairs` have a
    label; `lost` and `won` are those that one version alone got right. `grid` holds (place,
    weight): the losses from −1 to 1 in steps of 1/GRID. A loss between two places is divided
    between them so that the sum is exact.
    """

    kept: int
    unreadable: int
    pairs: int
    lost: int
    won: int
    grid: tuple[tuple[int, float], ...]


def request_hash(answer: str) -> int:
    """Return the signed 64-bit hash of a request id's unique part, as stored."""
    (signed,) = to_signed((xxh3_64_intdigest(answer.encode()),))
    return signed


def write_pairs(pairs: Sequence[ShadowPair], now: datetime) -> None:
    """Store the first pair of each unit and of each request; skip pairs without a rollout.

    Runs in the caller's transaction.
    """
    rollouts = _open_rollouts({pair.shadow for pair in pairs})
    rows: dict[tuple[UUID, str, int], tuple[Any, ...]] = {}
    for pair in pairs:
        if pair.shadow not in rollouts or not _is_valid(pair):
            continue
        key = rollouts[pair.shadow], pair.unit, request_hash(pair.request)
        at = min(EPOCH + timedelta(milliseconds=pair.at_ms), now)
        answers = (pair.stable_class, pair.shadow_class, pair.stable_score, pair.shadow_score)
        rows.setdefault(key, (*key, at, _tenant(pair), *answers))
    if not rows:
        return
    columns = [list(column) for column in zip(*(rows[key] for key in sorted(rows)), strict=True)]
    with connection.cursor() as cursor:
        cursor.execute(INSERT, columns)


def _tenant(pair: ShadowPair) -> str | None:
    return None if pair.tenant is None else pair.tenant.replace("\x00", "")[:TENANT_MAX]


def _open_rollouts(ids: set[str]) -> dict[str, UUID]:
    """Return the ids of rollouts that have not reached PAIRS_MAX."""
    uuids = {}
    for text in ids:
        try:
            uuids[text] = UUID(text)
        except ValueError:
            continue
    known = set(Rollout.objects.filter(pk__in=uuids.values()).values_list("pk", flat=True))
    return {text: pk for text, pk in uuids.items() if pk in known and _has_room(pk)}


def _has_room(rollout_id: UUID) -> bool:
    rows = ShadowPairRow.objects.filter(rollout=rollout_id).values("unit")
    return not rows[PAIRS_MAX - 1 : PAIRS_MAX].exists()


def _is_valid(pair: ShadowPair) -> bool:
    answers = (pair.stable_class, pair.shadow_class, pair.stable_score, pair.shadow_score)
    return (
        len(pair.unit) <= UNIT_MAX
        and "\x00" not in pair.unit
        and 0 <= pair.at_ms < 2**43
        and all(answer is None or isfinite(answer) for answer in answers)
    )


def read_pairs(
    rollout: Rollout, metric: Metric, *, scale: float | None, before_each: Callable[[], None]
) -> LabelledPairs:
    """Return the rollout's pairs labelled by the metric: by class, or by score if `scale` is set.

    `metric` has `outcomes_of` loaded. An error of `scale` or more counts as entirely wrong.
    `before_each` is called before each statement.
    """
    by = "class" if scale is None else "score"
    labelled = LABELLED.format(answer_of_stable=f"stable_{by}", answer_of_shadow=f"shadow_{by}")
    count = (COUNT_CLASSES if scale is None else COUNT_SCORES).format(grid=GRID)
    parameters: Mapping[str, Any] = {
        "rollout": rollout.pk,
        "model": rollout.model.name,
        "metric": (metric.outcomes_of or metric).pk,
        "skew_s": settings.OUTCOME_CLOCK_SKEW_S,
        "window_s": metric.window_s,
        "scale": scale,
    }
    before_each()
    with connection.cursor() as cursor:
        cursor.execute(labelled + count, parameters)
        rows = cursor.fetchall()
    before_each()
    stored = ShadowPairRow.objects.filter(rollout=rollout)
    readable = stored.exclude(**{f"stable_{by}": None}).exclude(**{f"shadow_{by}": None})
    kept = readable.count()
    pairs, lost, won = (sum(int(row[at]) for row in rows) for at in (1, 3, 4))
    return LabelledPairs(kept, stored.count() - kept, pairs, lost, won, _shared(rows))


def _shared(rows: Sequence[tuple[Any, ...]]) -> tuple[tuple[int, float], ...]:
    """Return the weight of each place; a loss between two places is divided between them."""
    weights: dict[int, float] = {}
    for place, n, above, *_ in rows:
        for at, weight in ((int(place), float(n) - float(above)), (int(place) + 1, float(above))):
            if weight > 0.0:
                weights[at] = weights.get(at, 0.0) + weight
    return tuple(sorted(weights.items()))


def to_observation(metric: Metric, pairs: LabelledPairs) -> dict[str, JSON]:
    """Return the observation that `apps.rollouts.paired` evaluates."""
    return {
        "metric": metric.name,
        "kept": pairs.kept,
        "unreadable": pairs.unreadable,
        "pairs": pairs.pairs,
        "lost": pairs.lost,
        "won": pairs.won,
        "grid": [[place, weight] for place, weight in pairs.grid],
    }
