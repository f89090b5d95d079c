"""Deletes the rows of each kind: by partition if the table is partitioned by time, else in batches.

A drop does one bounded step of one or two transactions and returns what it freed; if it freed
nothing, no rows are due. It can be killed at any point, and two processes may run it concurrently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection, transaction

from apps.lib.partitions import (
    Freed,
    PartitionedTable,
    create_ahead,
    delete_batch,
    drop_partition,
    estimate_row_bytes,
    list_leaves,
    list_partitions,
)
from controlplane.retention.holds import Hold, live_rollouts, outcomes_in_use

NOTHING = Freed()
BATCH_ROWS = 10_000
# Outcomes are ordered by arrival: a transaction deletes those of a span between these limits.
SPAN_LEAST = timedelta(minutes=5)
SPAN_MOST = timedelta(minutes=30)
FEW_ROWS = 1_000
EMPTY_SPAN = timedelta(days=1)
OUTCOMES = "experiments_outcomerow"

WINDOWS = (
    PartitionedTable("rollouts_telemetryrow", "ended_at", "day"),
    PartitionedTable("rollouts_shadowrow", "ended_at", "day"),
)
EVALUATIONS = PartitionedTable("rollouts_evaluation", "at", "month")
DIVIDED = (*WINDOWS, EVALUATIONS)


@dataclass(frozen=True)
class Pass:
    """The input of a step; `mark` is the progress of earlier steps, for kinds that store one."""

    cutoff: datetime
    mark: datetime | None = None


@dataclass(frozen=True)
class Step:
    """The result of a step: freed space and progress; `is_last`: no more rows are due."""

    freed: Freed = NOTHING
    mark: datetime | None = None
    is_last: bool = True


Drop = Callable[[Pass], Step]


def make_partitions(now: datetime) -> int:
    """Create the partitions of the near future; return their number."""
    return sum(create_ahead(divided, now) for divided in DIVIDED)


def _step(freed: Freed) -> Step:
    return Step(freed, is_last=freed.rows == 0 and freed.bytes == 0)


# --- by partition --------------------------------------------------------------------------------


def drop_windows(due: Pass) -> Step:
    for divided in WINDOWS:
        for partition in list_partitions(divided):
            if partition.until <= due.cutoff:
                return _step(drop_partition(divided, partition))
        freed = delete_batch(divided.rest, f"old.{divided.column} < %s", [due.cutoff], BATCH_ROWS)
        if freed.rows:
            return _step(freed)
    return Step()


# The evidence of decisions: the last evaluation of each check of each step, and every evaluation
# of a rollout that is live or ended after the cutoff.
NEEDED = """(
    EXISTS (
        SELECT FROM rollouts_rollout AS its
        WHERE its.id = old.rollout_id AND (its.ended_at IS NULL OR its.ended_at >= '{cutoff}')
    ) OR NOT EXISTS (
        SELECT FROM rollouts_evaluation AS later
        WHERE later.rollout_id = old.rollout_id AND later.step_index = old.step_index
          AND later.check_name = old.check_name AND later.id > old.id
    )
)"""


def drop_evaluations(due: Pass) -> Step:
    needed = NEEDED.format(cutoff=due.cutoff.isoformat())
    for partition in list_partitions(EVALUATIONS):
        if partition.until <= due.cutoff:
            return _step(drop_partition(EVALUATIONS, partition, needed))
    condition = f"old.at < %s AND NOT {needed}"
    return _step(delete_batch(EVALUATIONS.rest, condition, [due.cutoff], BATCH_ROWS))


# --- by rollout ----------------------------------------------------------------------------------

ENDED = """
    SELECT id, ended_at FROM rollouts_rollout WHERE ended_at = (
        SELECT min(ended_at) FROM rollouts_rollout
        WHERE ended_at < %s AND (%s::timestamptz IS NULL OR ended_at > %s)
    )
"""
UNNEEDED_INTERVALS = """
    DELETE FROM rollouts_observedinterval AS old WHERE rollout_id = ANY(%s) AND ordinal >= (
        SELECT coalesce(max((inputs->>'intervals')::int), 0) FROM rollouts_evaluation AS its
        WHERE its.rollout_id = old.rollout_id
    )
"""
DECIDED = "DELETE FROM rollouts_evaluation WHERE rollout_id = ANY(%s)"
EVIDENCE = "DELETE FROM rollouts_observedinterval WHERE rollout_id = ANY(%s)"


def drop_intervals(due: Pass) -> Step:
    return _of_next_rollouts(due, (("rollouts_observedinterval", UNNEEDED_INTERVALS),))


def drop_decisions(due: Pass) -> Step:
    return _of_next_rollouts(
        due, (("rollouts_evaluation", DECIDED), ("rollouts_observedinterval", EVIDENCE))
    )


@transaction.atomic
def _of_next_rollouts(due: Pass, statements: Sequence[tuple[str, str]]) -> Step:
    """Delete rows of the rollouts that ended next after the mark; those of a release share it."""
    freed = Freed()
    with connection.cursor() as cursor:
        cursor.execute(ENDED, [due.cutoff, due.mark, due.mark])
        rollouts = cursor.fetchall()
        if not rollouts:
            return Step(mark=due.mark)
        for table, statement in statements:
            cursor.execute(statement, [[pk for pk, _ in rollouts]])
            freed += Freed(cursor.rowcount, cursor.rowcount * estimate_row_bytes(table))
    return Step(freed, rollouts[0][1], is_last=False)


# --- in batches ----------------------------------------------------------------------------------


def drop_outcomes(due: Pass) -> Step:
    """Delete outcomes of the next span of arrival times; the span grows while it holds few rows."""
    mark = due.mark or _first_arrival()
    if mark is None or mark >= due.cutoff:
        return Step(mark=mark)
    rows, span = 0, SPAN_LEAST
    while rows < BATCH_ROWS and mark < due.cutoff:
        until = min(mark + span, due.cutoff)
        deleted = _delete_outcomes(mark, until, due.cutoff)
        if not deleted and not _any_arrived(until, until + EMPTY_SPAN):
            until = min(until + EMPTY_SPAN, due.cutoff)
        if deleted < FEW_ROWS:
            span = min(2 * span, SPAN_MOST)
        rows += deleted
        mark = until
    return Step(Freed(rows, rows * estimate_row_bytes(OUTCOMES)), mark, is_last=False)


@transaction.atomic
def _delete_outcomes(since: datetime, until: datetime, cutoff: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM experiments_outcomerow "
            "WHERE received_at >= %s AND received_at < %s AND occurred_at < %s",
            [since, until, cutoff],
        )
        return int(cursor.rowcount)


def _any_arrived(since: datetime, until: datetime) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM experiments_outcomerow "
            "WHERE received_at >= %s AND received_at < %s)",
            [since, until],
        )
        return bool(cursor.fetchone()[0])


def _first_arrival() -> datetime | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT min(received_at) FROM experiments_outcomerow")
        received_at: datetime | None = cursor.fetchone()[0]
    return received_at


ENDED_EXPERIMENTS = """
    old.experiment_id IN (
        SELECT id FROM experiments_experiment
        WHERE state = 'completed' AND refresh_due_at IS NULL AND ended_at < %s
    )"""
ENDED_ROLLOUTS = "old.rollout_id IN (SELECT id FROM rollouts_rollout WHERE ended_at < %s)"
ENDED_IMPORTS = "old.imported_id IN (SELECT id FROM experiments_outcomeimport WHERE ended_at < %s)"


def in_batches(*conditions: tuple[str, str]) -> Drop:
    """Return a drop for several tables, each with its condition on the cutoff."""

    def drop(due: Pass) -> Step:
        for table, condition in conditions:
            for leaf in list_leaves(table):
                freed = delete_batch(leaf, condition, [due.cutoff], BATCH_ROWS)
                if freed.rows:
                    return _step(freed)
        return Step()

    return drop


def _no_hold() -> Hold:
    return Hold()


@dataclass(frozen=True)
class Rule:
    """The deletion of a kind's rows: the function, the tables and the hold."""

    drop: Drop
    tables: tuple[str, ...]
    hold: Callable[[], Hold] = _no_hold


def _simple(*conditions: tuple[str, str]) -> Rule:
    return Rule(in_batches(*conditions), tuple(table for table, _ in conditions))


HOMES_WITHOUT_INSTANCE = """
    old.since < %s
    AND NOT EXISTS (SELECT FROM rollouts_instance AS known WHERE known.name = old.name)
"""

RULES: dict[str, Rule] = {
    "windows": Rule(drop_windows, tuple(each.table for each in WINDOWS), live_rollouts),
    "evaluations": Rule(drop_evaluations, (EVALUATIONS.table,)),
    "intervals": Rule(drop_intervals, ("rollouts_observedinterval",)),
    "decisions": Rule(drop_decisions, ()),
    "exposures": _simple(
        ("experiments_exposurerow", ENDED_EXPERIMENTS),
        ("experiments_measuredunit", ENDED_EXPERIMENTS),
    ),
    "outcomes": Rule(drop_outcomes, (OUTCOMES,), outcomes_in_use),
    "shadow_pairs": _simple(
        ("experiments_shadowpairrow", ENDED_ROLLOUTS),
        ("experiments_rolloutexposure", ENDED_ROLLOUTS),
    ),
    "refusals": _simple(
        ("experiments_refusedoutcomes", "old.last_at < %s"),
        ("experiments_refusedrow", ENDED_IMPORTS),
    ),
    "sketches": _simple(("experiments_unitcount", "old.hour < %s")),
    "instances": _simple(
        ("rollouts_instance", "old.reported_at < %s"),
        ("rollouts_breakertriprecord", "old.last_at < %s"),
        ("rollouts_trafficalarm", "old.last_at < %s"),
        ("identity_instancehome", HOMES_WITHOUT_INSTANCE),
    ),
    "sessions": _simple(("django_session", "old.expire_date < %s")),
    "audit": _simple(("registry_auditentry", "old.at < %s")),
    "batches": _simple(("rollouts_ingestedbatch", "old.at < %s")),
}
