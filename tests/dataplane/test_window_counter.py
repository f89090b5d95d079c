"""The counts of one window: ends, units without an answer, and clusters."""

import pytest

from contract.histogram import index_of, total
from contract.messages import CLUSTERS, ClusterCounts, Ends
from dataplane import ends
from dataplane.telemetry import Telemetry
from dataplane.unit_clusters import cluster_of, cluster_of_bucket
from tests.dataplane.test_telemetry import Clock

SPLIT = ("m", "2", "canary", 3, "r1")
NO_SPLIT = ("m", "1", "stable", 3, "")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gathered(clock):
    return Telemetry(clock)


def test_requests_are_counted_as_they_are_assigned_and_again_as_they_end(gathered):
    counter = gathered.counter(NO_SPLIT)
    counter.assign("a")
    counter.assign("a")
    (window,), _ = gathered.drain(3)
    assert (window.assigned_requests, window.assigned, window.ends) == (2, 1, Ends())
    counter.answered("a", 1.0)
    counter.end(ends.EXPIRED, "a")
    (window,), _ = gathered.drain(3)
    assert (window.assigned_requests, window.ends) == (0, Ends(answered=1, expired=1))


def test_each_end_has_its_own_count(gathered):
    counter = gathered.counter(NO_SPLIT)
    for end in range(len(ends.ENDS)):
        for _ in range(end + 1):
            counter.end(end, None)
    (window,), _ = gathered.drain(3)
    assert [getattr(window.ends, name) for name in ends.ENDS] == list(range(1, 10))


@pytest.mark.parametrize("end", range(len(ends.ENDS)))
def test_a_unit_is_left_unanswered_once_in_an_interval(gathered, clock, end):
    counter = gathered.counter(NO_SPLIT)
    for _ in range(3):
        counter.end(end, "a")
        counter.end(end, None)
    (window,), _ = gathered.drain(3)
    unanswered = ends.ENDS[end] not in ("answered", "refused", "cached")
    assert window.unanswered == (4 if unanswered else 0)
    clock.now += 10
    counter.end(end, "a")
    (window,), _ = gathered.drain(3)
    assert window.unanswered == unanswered


def test_an_answer_after_the_end_is_a_request_and_no_end(gathered):
    counter = gathered.counter(NO_SPLIT)
    counter.end(ends.ABANDONED, "a")
    counter.answered("a", 1.0, has_ended=True)
    counter.count_hit(has_ended=True)
    (window,), _ = gathered.drain(3)
    assert (window.requests, window.cache_hits, window.ends) == (1, 1, Ends(abandoned=1))


def test_clusters_add_up_to_the_window(gathered):
    counter = gathered.counter(SPLIT)
    for n in range(200):
        unit, cluster = (f"u{n % 50}", n % 50 % CLUSTERS) if n % 3 else (None, 7)
        counter.assign(unit, cluster)
        if n % 5 == 0:
            counter.failed(unit, cluster, fell_back=True)
            counter.end(ends.FELL_BACK, unit, cluster)
        else:
            counter.answered(unit, 10.0 * n + 1, cluster)
    (window,), _ = gathered.drain(3)
    whole = ClusterCounts()
    for counts in window.clusters.values():
        whole = whole.merge(counts)
    assert set(window.clusters) == set(range(CLUSTERS))
    assert whole.assigned == window.assigned == whole.units + 67
    assert whole.unanswered == window.unanswered
    assert whole.n == window.units + window.anonymous
    assert whole.errors == window.unit_errors + window.anonymous_errors
    assert whole.latency == window.latency
    assert total(window.latency) == window.ends.answered == 160


def test_only_clusters_with_counts_are_sent(gathered):
    counter = gathered.counter(SPLIT)
    counter.assign("a", 5)
    counter.answered("a", 3.0, 5)
    counter.assign(None, 31)
    counter.end(ends.SHED, None, 31)
    (window,), _ = gathered.drain(3)
    latency = {index_of(3.0): 1}
    assert window.clusters == {
        5: ClusterCounts(units=1, assigned=1, n=1, latency=latency),
        31: ClusterCounts(assigned=1, unanswered=1),
    }


def test_outside_a_split_there_are_no_clusters(gathered):
    counter = gathered.counter(NO_SPLIT)
    counter.assign("a")
    counter.answered("a", 1.0)
    (window,), _ = gathered.drain(3)
    assert (window.clusters, window.latency) == ({}, {0: 1})


def test_a_counter_of_an_old_generation_waits_for_requests_in_progress(gathered):
    counter = gathered.counter(SPLIT)
    counter.assign("a")
    for _ in range(200):
        gathered.drain(9)
    assert gathered.counter(SPLIT) is counter
    counter.end(ends.EXPIRED, "a")
    assert [w.ends.expired for w in gathered.drain(9)[0]] == [1]
    for _ in range(100):
        gathered.drain(9)
    assert gathered.counter(SPLIT) is not counter


def test_the_ends_of_windows_add_up_in_the_totals(gathered):
    totals = [0] * len(ends.ENDS)
    for generation in (3, 4):
        counter = gathered.counter((*SPLIT[:3], generation, "r1"), 10, totals)
        for _ in range(2):
            counter.answered("a", 1.0)
            counter.end(ends.SHED, "a")
            gathered.drain(3)
    assert (totals[ends.ANSWERED], totals[ends.SHED], sum(totals)) == (4, 4, 8)


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        ("fell_back", "expired", "failed"),
        ("fell_back", "refused", "failed"),
        ("fell_back", "abandoned", "failed"),
        ("shed", "expired", "shed"),
        ("shed", "refused", "refused"),
        ("bypassed", "failed", "failed"),
        ("bypassed", "shed", "failed"),
        ("bypassed", "refused", "refused"),
        ("bypassed", "abandoned", "abandoned"),
        ("refused", "failed", "failed"),
        ("refused", "shed", "failed"),
        ("refused", "expired", "expired"),
        ("refused", "refused", "refused"),
        ("refused", "abandoned", "abandoned"),
    ],
)
def test_a_request_without_any_answer_ends_by_its_first_version(first, end, expected):
    numbers = [ends.ENDS.index(name) for name in (first, end)]
    assert ends.ENDS[ends.end_without_answer(*numbers)] == expected


def test_clusters_are_the_same_everywhere():
    assert [cluster_of(name) for name in (b"", b"10.0.0.1", b"key")] == [2, 6, 3]
    assert [cluster_of_bucket(bucket) for bucket in (0, 31, 32, 9_999)] == [0, 31, 0, 15]
