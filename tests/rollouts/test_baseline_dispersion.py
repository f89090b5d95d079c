"""Stable's dispersion over time before a rollout: read once, stored, and passed to the checks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.rollouts.baseline_dispersion import error_dispersion_before, from_json, to_json
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import make_baking, make_model, send
from tests.rollouts.test_reconcile import baking

pytestmark = pytest.mark.django_db


def past(rollout: Rollout, minutes: int = 10, **fields: int) -> None:
    for number in range(6 * minutes):
        at = rollout.started_at - timedelta(seconds=10 * (number + 1))
        n, errors = 100, 40 if number % 12 == 0 else 0
        counts = {"units": n, "unit_errors": errors} | fields
        send("digits", 1, at=at, interval_started_at=at, **counts)


def test_a_stable_without_answers_has_no_history() -> None:
    assert error_dispersion_before(make_baking(make_model()), 10) is None


def test_bad_minutes_before_a_rollout_show_in_its_history() -> None:
    rollout = make_baking(make_model())
    past(rollout)
    history = error_dispersion_before(rollout, 10)
    assert history is not None
    # Of ten minutes the middle third: the wildest and the steadiest are left out.
    assert history.intervals == 20
    assert float(history.at_once) > 10 * float(history.binomial)


def test_a_history_never_changes_once_read() -> None:
    rollout = make_baking(make_model())
    past(rollout)
    first = error_dispersion_before(rollout, 10)
    past(rollout, unit_errors=100)
    rollout.refresh_from_db()
    assert to_json(error_dispersion_before(rollout, 10)) == to_json(first)


def test_an_evaluation_stores_the_history() -> None:
    rollout = baking()
    past(rollout)
    tick_rollouts()
    row = Evaluation.objects.filter(rollout=rollout, check_name="error-rate").get()
    kept = from_json(row.inputs["before"])
    assert kept is not None
    assert to_json(kept) == to_json(error_dispersion_before(Rollout.objects.get(pk=rollout.pk), 10))
