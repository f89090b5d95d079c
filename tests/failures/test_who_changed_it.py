"""Nobody could tell what was in production on a date (mlflow #2169). Here the history has it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.publication import publish_table
from apps.rollouts.selectors.provenance import decider_of
from apps.rollouts.services import abort_rollout
from apps.rollouts.serving_history import serving_at
from tests.rollouts.factories import ANNA, make_baking, make_model

pytestmark = pytest.mark.django_db


def test_the_history_has_version_and_decider_at_any_time() -> None:
    model = make_model()
    publish_table(reason="start", actor=ANNA, now=database_now())
    rollout = make_baking(model)
    during = database_now()
    abort_rollout(rollout=rollout, actor=ANNA, now=during + timedelta(seconds=5))

    then = serving_at("digits", during)
    after = serving_at("digits", during + timedelta(seconds=6))

    assert then is not None
    assert then.split is not None
    assert after is not None
    assert (then.stable, then.split["version"], then.split["weight_bp"]) == ("1", "2", 500)
    assert (then.actor, decider_of(then).id) == ("anna", str(rollout.pk))
    assert (after.stable, after.split, decider_of(after).id) == ("1", None, str(rollout.pk))


def test_before_the_first_table_there_is_no_history() -> None:
    make_baking(make_model())

    assert serving_at("digits", database_now() - timedelta(days=1)) is None
