from contract.histogram import index_of
from contract.messages import ShadowWindow
from dataplane.shadow.comparison import Difference
from dataplane.shadow.counting import ShadowTelemetry

KEY = ("sums", "2", "1", 7, "sh1")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_window_has_the_counts_since_the_last_one():
    clock = Clock()
    telemetry = ShadowTelemetry(clock)
    counter = telemetry.counter(KEY)
    counter.answered(1_000.0)
    counter.differed(Difference(3, 1, 2, 0.5, 1.5, 2))
    counter.differed(Difference(1, 0, 0, 0.25, -0.5, 1))
    clock.now = 101.5
    counter.failed()
    counter.drop()
    assert telemetry.drain() == [
        ShadowWindow(
            model="sums", version="2", stable="1", generation=7, shadow="sh1",
            started_at_ms=100_000, ended_at_ms=101_500, compared=2, rows=4, flips=1,
            beyond_tolerance=2, largest_difference=0.5, rank_correlation_sum=1.0, ranked=3,
            errors=1, dropped=1, latency={index_of(1_000.0): 1},
        )
    ]  # fmt: skip
    assert telemetry.drain() == []


def test_a_clock_that_is_set_back_ends_no_window_before_its_start():
    clock = Clock()
    telemetry = ShadowTelemetry(clock)
    telemetry.counter(KEY).failed()
    clock.now = 50.0
    (window,) = telemetry.drain()
    assert window.ended_at_ms == window.started_at_ms == 100_000


def test_each_generation_has_its_own_window():
    telemetry = ShadowTelemetry(Clock())
    telemetry.counter(KEY).failed()
    telemetry.counter((*KEY[:3], 8, "sh1")).failed()
    assert [window.generation for window in telemetry.drain()] == [7, 8]


def test_a_quiet_counter_stays_while_a_copy_is_in_progress():
    telemetry = ShadowTelemetry(Clock())
    counter = telemetry.counter(KEY)
    counter.outstanding = 1
    telemetry.drain()
    assert telemetry.counter(KEY) is counter
    counter.outstanding = 0
    telemetry.drain()
    assert telemetry.counter(KEY) is not counter
