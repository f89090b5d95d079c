"""What served when, and who decided it, from the rows that publications leave."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from apps.lib.clock import database_now
from apps.rollouts.models import ServingChange
from apps.rollouts.publication import publish_table
from apps.rollouts.services import abort_rollout, promote_now
from apps.rollouts.serving_history import history_of, serving_at
from tests.rollouts.factories import ANNA, make_baking, make_model

pytestmark = pytest.mark.django_db


def publish() -> None:
    publish_table(reason="a test", actor=ANNA, now=database_now())


def stables() -> list[str]:
    return [change.stable for change in history_of("digits")][::-1]


def test_a_table_leaves_a_row_for_each_model_that_it_changes() -> None:
    make_model()
    publish()
    make_model("other")
    publish()
    assert [change.model_name for change in ServingChange.objects.all()] == ["digits", "other"]


def test_each_step_is_told_with_who_decided_it() -> None:
    rollout = make_baking(make_model())
    promote_now(rollout=rollout, actor=ANNA, now=database_now(), reason="it is good")
    first, last = history_of("digits")[::-1]
    assert first.split is not None
    assert (first.stable, first.split["version"], first.split["weight_bp"]) == ("1", "2", 500)
    assert (last.stable, last.split, last.actor) == ("2", None, "anna")
    assert last.reason == "digits:2 is stable"


def test_an_instant_has_one_answer() -> None:
    rollout = make_baking(make_model())
    begun = history_of("digits")[0].at
    abort_rollout(rollout=rollout, actor=ANNA, now=begun + timedelta(minutes=5))
    during = serving_at("digits", begun + timedelta(minutes=1))
    after = serving_at("digits", begun + timedelta(minutes=5))
    assert during is not None
    assert after is not None
    assert (during.split is None, after.split is None) == (False, True)
    assert serving_at("digits", begun - timedelta(seconds=1)) is None


def test_a_model_that_is_served_no_more_says_so() -> None:
    model = make_model()
    publish()
    for version in model.versions.all():
        version.deployments.update(state="absent")
    publish()
    assert stables() == ["1", ""]


def test_what_was_undone_served_nobody() -> None:
    make_model()
    with transaction.atomic():
        publish()
        transaction.set_rollback(True)
    assert stables() == []


def test_the_same_service_again_leaves_no_row() -> None:
    model = make_model()
    publish()
    model.timeout_ms = 77
    model.save()
    publish()
    assert stables() == ["1"]
