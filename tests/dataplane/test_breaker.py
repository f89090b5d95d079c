from contract.routing import Breaker as Settings
from dataplane.breaker import Breaker, State


def make(window=4, failures=2, open_ms=1_000):
    trips = []
    breaker = Breaker(Settings(window=window, failures=failures, open_ms=open_ms), trips.append)
    return breaker, trips


def trip(breaker, now=0.0, *, dead=False):
    for _ in range(breaker.settings.failures):
        breaker.failed(now, "why", dead=dead)


def test_it_opens_at_the_threshold_with_a_reason():
    breaker, trips = make()
    breaker.failed(0.0, "first", dead=False)
    assert breaker.admits(0.0)
    breaker.failed(0.0, "second", dead=False)
    assert not breaker.admits(0.0)
    assert trips == ["second"]


def test_failures_that_left_the_window_do_not_count():
    breaker, trips = make(window=4, failures=2)
    breaker.failed(0.0, "old", dead=False)
    for _ in range(4):
        breaker.succeeded()
    breaker.failed(0.0, "new", dead=False)
    assert (breaker.state, trips) == (State.CLOSED, [])


def test_it_admits_one_trial_after_open_ms():
    breaker, _ = make()
    trip(breaker)
    assert not breaker.admits(0.9)
    assert breaker.admits(1.0)
    assert not breaker.admits(1.0)
    assert breaker.state is State.HALF_OPEN


def test_a_trial_that_succeeds_closes_it():
    breaker, trips = make()
    trip(breaker)
    breaker.admits(1.0)
    breaker.succeeded()
    assert breaker.calm
    assert breaker.admits(1.0)
    assert len(trips) == 1


def test_a_trial_that_fails_opens_it_again():
    breaker, trips = make()
    trip(breaker)
    breaker.admits(1.0)
    breaker.failed(1.0, "again", dead=False)
    assert not breaker.admits(1.9)
    assert trips == ["why", "again"]


def test_a_trial_without_a_verdict_is_released():
    breaker, _ = make()
    trip(breaker)
    breaker.admits(1.0)
    breaker.released()
    assert breaker.admits(1.0)


def test_a_last_resort_is_refused_only_while_the_version_is_dead():
    faulty, _ = make()
    trip(faulty, dead=False)
    assert faulty.admits(0.0, last_resort=True)
    dead, _ = make()
    trip(dead, dead=True)
    assert not dead.admits(0.0, last_resort=True)


def test_calm_means_that_nothing_must_be_reported():
    breaker, _ = make()
    assert breaker.calm
    breaker.failed(0.0, "why", dead=False)
    assert not breaker.calm
    for _ in range(4):
        breaker.succeeded()
    assert breaker.calm


def test_a_version_that_is_unreachable_needs_few_answers():
    breaker, trips = make(window=20, failures=10)
    for now in (1.0, 2.0):
        breaker.failed(now, "stub", dead=True, unreachable=True)
    assert trips == []
    breaker.failed(3.0, "stub", dead=True, unreachable=True)
    assert (breaker.state, trips) == (State.OPEN, ["stub"])


def test_answers_of_one_call_are_one_answer():
    breaker, _ = make(window=2, failures=2)
    breaker.failed(0.0, "why", dead=False)
    for _ in range(8):
        breaker.succeeded(together=True)
    assert breaker.recent_failures == 1
    trip(breaker)
    breaker.admits(1.0)
    breaker.succeeded(together=True)
    assert breaker.state is State.CLOSED


def test_any_other_end_resets_the_count_of_unreachable():
    breaker, trips = make(window=20, failures=10)
    for now in (1.0, 2.0, 3.0):
        breaker.failed(now, "stub", dead=True, unreachable=True)
        breaker.failed(now + 0.2, "timeout", dead=True)
        breaker.failed(now + 0.4, "stub", dead=True, unreachable=True)
        breaker.succeeded()
    assert (breaker.state, trips) == (State.CLOSED, [])


def test_a_reset_clears_everything():
    breaker, _ = make()
    trip(breaker, dead=True)
    breaker.reset()
    assert breaker.calm
    assert breaker.admits(0.0)
    assert breaker.failure_share == 0.0
