"""The ends of requests on a rollout's page."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout
from apps.rollouts.selectors.ends import ends_of
from tests.rollouts.callers import rendered
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def rollout() -> Rollout:
    return make_baking(make_model())


def end(rollout: Rollout, variant: str, *, split: str | None = None, **ends: int) -> None:
    number = 2 if variant == "canary" else 1
    at = database_now() + timedelta(seconds=1)
    split = str(rollout.pk) if split is None else split
    send("digits", number, variant=variant, split=split, ends=ends, at=at)


def test_ends_of_both_sides_add_up_in_words(rollout: Rollout) -> None:
    end(rollout, "canary", answered=6, expired=3)
    end(rollout, "canary", answered=1)
    end(rollout, "stable", answered=90)
    end(rollout, "baseline", answered=10)
    end(rollout, "canary", split="another", shed=7)

    answered, expired = ends_of(rollout, database_now() + timedelta(seconds=5))

    assert (answered.canary, answered.stable) == (7, 100)
    assert (expired.words, expired.canary, expired.stable) == ("client deadline expired", 3, 0)
    assert (expired.canary_share, expired.stable_share) == (0.3, 0.0)


def test_the_page_shows_them_and_leaves_the_table_out_without_any(
    rollout: Rollout, client: Client
) -> None:
    client.force_login(User.objects.create_superuser("anna"))
    page = f"/rollouts/{rollout.pk}/"
    assert 'id="ends"' not in rendered(client.get(page))
    Rollout.objects.update(started_at=database_now() - timedelta(minutes=1))
    send("digits", 2, variant="canary", split=str(rollout.pk), ends={"shed": 2})
    text = rendered(client.get(page))
    assert "refused: over capacity" in text
