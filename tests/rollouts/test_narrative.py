"""A rollout's one-sentence summary: versions, phase, share and reason."""

from __future__ import annotations

import pytest

from apps.lib.clock import database_now
from apps.rollouts.narrative import latest_checks, summarise
from apps.rollouts.services import abort_rollout, start_rollout
from tests.rollouts.factories import ANNA, judge, make_baking, make_model

pytestmark = pytest.mark.django_db


def test_a_live_canary_has_its_share_and_its_reason() -> None:
    rollout = make_baking(make_model())
    assert summarise(rollout) == (
        "Canary rollout of digits:2 from digits:1: baking at 5 %. the target is ready."
    )


def test_an_aborted_rollout_names_its_actor() -> None:
    rollout = make_baking(make_model())
    row = abort_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="looks odd")
    assert summarise(row).endswith("rolling back at 0 %. looks odd.")


def test_a_first_rollout_has_no_baseline() -> None:
    model = make_model(stable=None)
    target = model.versions.get(number=1)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    assert summarise(rollout).startswith("First rollout of digits, to digits:1: pending")


def test_only_the_latest_result_of_each_check_counts() -> None:
    rollout = make_baking(make_model())
    judge(rollout, "latency", "no-data", "first")
    judge(rollout, "error-rate", "pass", "only")
    judge(rollout, "latency", "pass", "second")
    reasons = [(row.check_name, row.reason) for row in latest_checks(rollout)]
    assert reasons == [("error-rate", "only"), ("latency", "second")]
