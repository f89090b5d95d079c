import pytest

from contract.histogram import total
from dataplane import telemetry
from dataplane import window_counter as unit_counter
from dataplane.telemetry import Telemetry

KEY = ("m", "2", "canary", 3, "r1")


class Clock:
    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gathered(clock):
    return Telemetry(clock)


def test_a_window_counts_requests_errors_units_and_latencies(gathered, clock):
    counter = gathered.counter(KEY)
    counter.answered("a", 100.0)
    counter.answered(None, 200.0)
    counter.failed("b", fell_back=True)
    counter.failed(None, fell_back=False)
    clock.now += 1
    (window,), _ = gathered.drain(3)
    assert (window.requests, window.errors, window.fallbacks) == (4, 2, 1)
    assert (window.units, window.unit_errors) == (2, 1)
    assert (window.anonymous, window.anonymous_errors) == (2, 1)
    assert total(window.latency) == 2
    assert (window.started_at_ms, window.ended_at_ms) == (1_000_000, 1_001_000)


def test_a_unit_counts_once_in_an_interval(gathered, clock):
    counter = gathered.counter(KEY)
    windows = []
    for _ in range(3):
        for _ in range(5):
            counter.answered("a", 1.0)
            counter.failed("a", fell_back=False)
        clock.now += 1
        windows += gathered.drain(3)[0]
    assert [(w.units, w.unit_errors) for w in windows] == [(1, 1), (0, 0), (0, 0)]
    assert sum(w.errors for w in windows) == 15


def test_a_unit_counts_again_in_the_next_interval_which_is_aligned_to_the_epoch(gathered, clock):
    clock.now = 1_009.5
    counter = gathered.counter(KEY, 10)
    counter.answered("a", 1.0)
    clock.now = 1_010.2
    counter.answered("a", 1.0)
    first, second = gathered.drain(3)[0]
    assert (first.interval_started_at_ms, first.ended_at_ms) == (1_000_000, 1_010_000)
    assert (second.interval_started_at_ms, second.started_at_ms) == (1_010_000, 1_010_200)
    assert (first.units, second.units) == (1, 1)


def test_a_step_with_longer_intervals_counts_in_them(gathered, clock):
    clock.now = 1_195.0
    gathered.counter(KEY, 10).answered("a", 1.0)
    later = gathered.counter(("m", "2", "canary", 4, "r1"), 120)
    for _ in range(2):
        later.answered("a", 1.0)
    windows, _ = gathered.drain(4)
    assert [(w.interval_started_at_ms, w.units) for w in windows] == [
        (1_190_000, 1),
        (1_080_000, 1),
    ]


def test_a_new_generation_counts_no_unit_twice(gathered):
    gathered.counter(KEY).answered("a", 1.0)
    gathered.counter((*KEY[:3], 4, "r1")).answered("a", 1.0)
    windows, _ = gathered.drain(4)
    assert [(w.generation, w.units) for w in windows] == [(3, 1), (4, 0)]


def test_another_split_counts_separately(gathered):
    gathered.counter(KEY).answered("a", 1.0)
    gathered.counter((*KEY[:4], "r2")).answered("a", 1.0)
    assert [w.units for w in gathered.drain(3)[0]] == [1, 1]


def test_assigned_counts_units_once_and_each_request_without_one(gathered):
    counter = gathered.counter(KEY)
    for unit in ("a", "a", None, "b", None):
        counter.assign(unit)
    counter.answered("a", 1.0)
    (window,), _ = gathered.drain(3)
    assert (window.assigned, window.requests, window.units) == (4, 1, 1)


def test_the_unit_of_a_cached_answer_is_assigned_but_not_counted(gathered):
    counter = gathered.counter(KEY)
    counter.assign("a")
    counter.count_hit()
    (window,), _ = gathered.drain(3)
    assert (window.assigned, window.units, window.cache_hits) == (1, 0, 1)
    counter.assign("a")
    counter.answered("a", 1.0)
    (window,), _ = gathered.drain(3)
    assert (window.assigned, window.units) == (0, 1)


def test_without_requests_there_is_no_window(gathered):
    gathered.counter(KEY)
    assert gathered.drain(3) == ([], [])


def test_a_late_request_of_an_old_generation_is_still_counted(gathered):
    counter = gathered.counter(KEY)
    gathered.drain(9)
    counter.answered("a", 1.0)
    assert [w.generation for w in gathered.drain(9)[0]] == [3]


def test_counters_of_old_generations_are_forgotten_in_time(gathered):
    counter = gathered.counter(KEY)
    for _ in range(telemetry.QUIET_DRAINS_MAX):
        gathered.drain(9)
    assert gathered.counter(KEY) is not counter


def test_the_sets_of_units_are_limited_and_overflow_is_counted(gathered, monkeypatch):
    monkeypatch.setattr(unit_counter, "UNITS_MAX", 2)
    counter = gathered.counter(KEY)
    for unit in "abcd":
        counter.failed(unit, fell_back=False)
    (window,), _ = gathered.drain(3)
    assert (window.units, window.unit_errors, gathered.units_overflow) == (2, 2, 2)


def test_windows_beyond_the_limit_are_dropped_and_counted(gathered, monkeypatch):
    monkeypatch.setattr(telemetry, "WINDOWS_MAX", 1)
    gathered.counter(KEY).answered("a", 1.0)
    gathered.counter((*KEY[:4], "r2")).answered("a", 1.0)
    assert len(gathered.drain(3)[0]) == 1
    assert gathered.dropped["windows"] == 1


def test_a_unit_is_exposed_once_to_a_variant(gathered):
    for unit, variant in [("a", "x"), ("a", "x"), ("b", "x"), ("a", "y")]:
        gathered.expose("e1", unit, variant, "2")
    _, exposures = gathered.drain(3)
    assert [(e.unit, e.variant) for e in exposures] == [("a", "x"), ("b", "x"), ("a", "y")]
    gathered.expose("e1", "a", "x", "2")
    assert gathered.drain(3)[1] == []


def test_an_evicted_exposure_is_reported_again(gathered, monkeypatch):
    monkeypatch.setattr(telemetry, "EXPOSURES_MAX", 2)
    for unit in ("a", "b", "c", "a"):
        gathered.expose("e1", unit, "x", "2")
    assert [e.unit for e in gathered.drain(3)[1]] == ["a", "b", "c", "a"]


def test_exposures_beyond_the_limit_are_dropped_and_counted(gathered, monkeypatch):
    monkeypatch.setattr(telemetry, "PENDING_EXPOSURES_MAX", 1)
    gathered.expose("e1", "a", "x", "2")
    gathered.expose("e1", "b", "x", "2")
    assert gathered.dropped["exposures"] == 1
    gathered.drain(3)
    gathered.expose("e1", "b", "x", "2")
    assert len(gathered.drain(3)[1]) == 1


def test_cached_answers_are_in_no_other_count(gathered):
    counter = gathered.counter(KEY)
    counter.count_hit()
    counter.answered("a", 1_000.0)
    counter.count_hit()
    (window,), _ = gathered.drain(3)
    assert (window.cache_hits, window.requests, window.units, window.anonymous) == (2, 1, 1, 0)
    assert sum(window.latency.values()) == 1
    assert gathered.drain(3)[0] == []
