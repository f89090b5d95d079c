"""Low traffic: neighbours are pooled until both arms have data, and data gets old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from apps.rollouts.evidence import Arm, Interval
from apps.rollouts.sparse_traffic import is_fresh, pool_sparse
from contract.messages import ClusterCounts

START = datetime(2026, 1, 1, tzinfo=UTC)


def interval(place: int, canary: int, control: int, *, step: int = 0, errors: int = 0) -> Interval:
    def arm(n: int, errors: int = 0) -> Arm:
        clusters = {3: ClusterCounts(n, n, 0, n, errors, {80: n})} if n else {}
        return Arm(n, errors, n, {80: n}, n, 0, clusters)

    at = START + timedelta(seconds=10 * place)
    return Interval(step, at, arm(canary, errors), arm(control))


def counts(intervals: list[Interval]) -> list[tuple[int, int]]:
    return [(i.canary.n, i.control.n) for i in intervals]


def test_intervals_with_both_arms_stay_unchanged() -> None:
    full = [interval(i, 1, 19) for i in range(5)]
    assert pool_sparse(full) == full


def test_neighbours_are_pooled_until_both_arms_have_data() -> None:
    rows = [interval(0, 0, 3), interval(1, 0, 2), interval(2, 1, 1, errors=1), interval(3, 0, 4)]
    (pooled, rest) = pool_sparse(rows)
    assert counts([pooled, rest]) == [(1, 6), (0, 4)]
    assert (pooled.started_at, pooled.canary.errors) == (START, 1)
    assert pooled.control.latency == {80: 6}
    assert pooled.control.clusters == {3: ClusterCounts(6, 6, 0, 6, 0, {80: 6})}


def test_a_canary_without_any_answer_is_compared_too() -> None:
    rows = [interval(0, 0, 3), interval(1, 0, 0), interval(2, 0, 0)]
    for each in rows[1:]:
        each.canary = Arm(assigned=1, unanswered=1)
    pooled, rest = pool_sparse(rows)
    assert (pooled.canary.unanswered, pooled.control.assigned) == (1, 3)
    assert rest == rows[2]


def test_steps_are_never_pooled_nor_is_the_interval_in_which_the_share_changed() -> None:
    rows = [
        interval(0, 0, 3),
        interval(1, 0, 3),
        interval(1, 2, 0, step=1),
        interval(2, 0, 9, step=1),
    ]
    assert counts(pool_sparse(rows)) == counts(rows)


sparse = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)), max_size=30)


@given(sparse)
def test_a_complete_pool_never_changes(
    rows: list[tuple[int, int, int]],
) -> None:
    intervals = [interval(i, a, b, step=s) for i, (a, b, s) in enumerate(rows)]
    whole = pool_sparse(intervals)
    assert sum(i.canary.n for i in whole) == sum(i.canary.n for i in intervals)
    for end in range(len(intervals)):
        done = [i for i in pool_sparse(intervals[:end]) if i.canary.n and i.control.n]
        assert [i for i in whole if i.canary.n and i.control.n][: len(done)] == done


def fresh(rows: list[Interval], *, at_s: float, needs_control: bool = True, step: int = 0) -> bool:
    now = START + timedelta(seconds=at_s)
    return is_fresh(rows, step, needs_control=needs_control, interval_s=10, now=now)


def test_missing_data_of_either_version_is_not_fresh() -> None:
    rows = [interval(i, 5, 95 if i < 50 else 0) for i in range(100)]
    assert fresh(rows[:50], at_s=510)
    assert not fresh(rows, at_s=1_010)
    assert fresh(rows, at_s=1_010, needs_control=False)
    assert not fresh(rows, at_s=1_100, needs_control=False)
    assert not fresh(rows, at_s=510, step=1)


def test_three_requests_an_hour_are_fresh_for_hours() -> None:
    rows = [interval(i * 120, i % 2, 1 - i % 2) for i in range(60)]
    last_s = 10 * 120 * 59
    assert fresh(rows, at_s=last_s + 3_600)
    assert not fresh(rows, at_s=last_s + 6 * 3_600)
