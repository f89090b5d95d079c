"""The fleet page: who went silent and is forgotten, and traffic that went against its table."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import AuditEntry, ModelRole, Role
from apps.rollouts.models import Instance, TrafficAlarm
from tests.confirming import post_yes
from tests.rollouts.callers import rendered
from tests.rollouts.factories import make_instance

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


def make_silent(name: str = "i-9", minutes: int = 2) -> Instance:
    return make_instance(name, reported_at=database_now() - timedelta(minutes=minutes))


def text_of(client: Client) -> str:
    return rendered(client.get("/fleet/"))


def test_a_silent_instance_is_told_of_until_it_is_forgotten(operator: Client) -> None:
    make_silent()
    text = text_of(operator)
    assert "<b>i-9</b> has been silent for" in text
    assert '<span class="badge bad">silent</span>' in text

    response = post_yes(operator, "/fleet/forget/", {"name": "i-9"}, follow=True)

    assert "Instance i-9 is forgotten" in rendered(response)
    assert not Instance.objects.exists()
    assert AuditEntry.objects.filter(action="instance.forgotten", target="i-9").exists()


def test_one_that_is_silent_for_long_is_waited_for_by_nobody(operator: Client) -> None:
    make_silent(minutes=60)

    text = text_of(operator)

    assert "has been silent for" not in text
    assert 'Forget<span class="visually-hidden"> i-9' in text


def test_a_live_instance_is_not_forgotten(operator: Client) -> None:
    make_instance("i-1")

    text = text_of(operator)
    refused = post_yes(operator, "/fleet/forget/", {"name": "i-1"}, follow=True)

    assert 'Forget<span class="visually-hidden"> i-1' not in text
    assert "is live: it reported" in rendered(refused)
    assert Instance.objects.exists()


def test_forgetting_is_for_operators_and_of_what_exists(client: Client, operator: Client) -> None:
    assert operator.post("/fleet/forget/", {"name": "nobody"}).status_code == 404
    make_silent()
    viewer = Client()
    viewer.force_login(User.objects.create_user("vera"))

    assert "Forget instance" not in text_of(viewer)
    assert viewer.post("/fleet/forget/", {"name": "i-9"}).status_code == 403
    assert Instance.objects.exists()


def test_alarms_about_traffic_are_shown_and_refresh_the_page(operator: Client) -> None:
    before = text_of(operator)
    assert "No alarms." in before
    stamp = before.split("stamp=")[1][:16]
    now = database_now()
    TrafficAlarm.objects.create(
        kind="leak",
        instance="i-1",
        model_name="digits",
        version_number="3",
        generation=7,
        reason="12 requests while its share was 0",
        first_at=now,
        last_at=now,
    )

    fragment = operator.get(f"/fleet/?stamp={stamp}", headers={"HX-Request": "true"})

    assert fragment.status_code == 200
    assert "12 requests while its share was 0" in rendered(fragment)
