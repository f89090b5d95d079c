"""The page of what holds rollouts back: freeze windows, the limit, quarantine."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import AuditEntry, ModelRole, RegisteredModel, Role
from apps.rollouts.freeze_store import create_freeze
from apps.rollouts.maintenance import concurrent_max, set_concurrent_max
from apps.rollouts.models import FreezeWindow, Quarantine
from apps.rollouts.selectors.rules import next_start
from apps.rollouts.services import abort_rollout
from tests.confirming import post_yes
from tests.rollouts.callers import rendered
from tests.rollouts.factories import ANNA, make_baking, make_model

pytestmark = pytest.mark.django_db

RULES = "/rollouts/rules/"
HOUR = timedelta(hours=1)


@pytest.fixture
def boss(client: Client) -> Client:
    user = User.objects.create_user("boss")
    ModelRole.objects.create(user=user, role=Role.ADMIN)
    client.force_login(user)
    return client


def log_in_operator(client: Client, model: RegisteredModel | None = None) -> None:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, model=model, role=Role.OPERATOR)
    client.force_login(user)


def text_of(client: Client) -> str:
    response = client.get(RULES)
    assert response.status_code == 200
    return rendered(response)


def make_freeze(model: RegisteredModel | None = None, **more: Any) -> FreezeWindow:
    now = database_now()
    values = {"reason": "the fair", "starts_at": now - HOUR, "ends_at": now + HOUR}
    return create_freeze(model=model, **(values | more), actor=ANNA, now=now - HOUR)


def make_past() -> FreezeWindow:
    now = database_now()
    values = {"starts_at": now - 3 * HOUR, "ends_at": now - 2 * HOUR, "reason": "the old fair"}
    return create_freeze(model=None, **values, actor=ANNA, now=now - 3 * HOUR)


def sent(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M}"


# --- Freeze windows -----------------------------------------------------------------------------


def test_without_rules_each_part_says_so(boss: Client) -> None:
    text = text_of(boss)

    assert "No open or upcoming freeze windows" in text
    assert "No limit" in text
    assert "No version is in quarantine" in text
    assert RULES in rendered(boss.get("/rollouts/"))


def test_windows_are_told_apart_by_whether_they_are_open(boss: Client) -> None:
    now = database_now()
    held = make_freeze(make_model())
    make_freeze(reason="the next fair", starts_at=now + HOUR, ends_at=now + 2 * HOUR)
    make_past()

    text = text_of(boss)

    opened, rest = text.split(f'id="freeze-{held.pk}"')[1].split('id="upcoming"')
    upcoming, past = rest.split('id="past-freezes"')
    assert "digits</a> is frozen</b> until" in opened
    assert "the fair" in opened
    assert "the next fair" in upcoming
    assert "all models: the old fair" in past


def test_a_weekly_window_says_when_it_opens_next(boss: Client) -> None:
    now = database_now()
    window = make_freeze(
        starts_at=now - timedelta(days=10), ends_at=now - timedelta(days=9), is_weekly=True
    )

    text = text_of(boss)

    assert next_start(window, now) == window.starts_at + timedelta(days=14)
    assert f"{window.starts_at + timedelta(days=14):%b %Y %H:%M}" in text
    assert "1 d, <b>weekly</b>" in text


def test_a_window_is_set_from_now_on_when_no_start_is_said(boss: Client) -> None:
    make_model()
    ends_at = database_now() + HOUR

    boss.post(f"{RULES}freezes/", {"model": "digits", "ends_at": sent(ends_at), "reason": "fair"})

    window = FreezeWindow.objects.get()
    assert (window.model.name if window.model else "", window.created_by) == ("digits", "boss")
    assert database_now() - window.starts_at < timedelta(minutes=1)
    assert not window.is_weekly


def test_all_models_are_frozen_weekly_when_that_is_asked(boss: Client) -> None:
    starts_at = database_now() + HOUR
    data = {"starts_at": sent(starts_at), "ends_at": sent(starts_at + HOUR), "is_weekly": "on"}

    boss.post(f"{RULES}freezes/", data | {"reason": "Fridays"})

    window = FreezeWindow.objects.get()
    assert (window.model, window.is_weekly) == (None, True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"ends_at": ""}, "This field is required."),
        ({"ends_at": "tomorrow"}, "Enter a valid date/time."),
        ({"ends_at": "2020-01-01T10:00"}, "The window must end after it starts."),
        ({"starts_at": "2020-01-01T10:00", "ends_at": "2020-01-02T10:00"}, "is already over"),
        ({"reason": " "}, "This field is required."),
        ({"model": "nothing"}, "Select a valid choice."),
    ],
)
def test_a_window_that_cannot_be_is_refused_beside_the_field(
    boss: Client, data: dict[str, str], message: str
) -> None:
    values = {"ends_at": sent(database_now() + HOUR), "reason": "fair"}

    response = boss.post(f"{RULES}freezes/", values | data)

    text = rendered(response)
    assert response.status_code == 400
    assert message in text.split('class="errorlist"')[1]
    assert '<details id="freeze" open>' in text
    assert not FreezeWindow.objects.exists()


def test_an_open_window_ends_now_and_one_to_come_is_deleted(boss: Client) -> None:
    now = database_now()
    held = make_freeze()
    to_come = make_freeze(starts_at=now + HOUR, ends_at=now + 2 * HOUR)

    for window in (held, to_come):
        post_yes(boss, f"{RULES}freezes/{window.pk}/end/")

    assert FreezeWindow.objects.get().ends_at <= database_now()
    assert AuditEntry.objects.filter(action__in=["freeze.ended", "freeze.deleted"]).count() == 2


def test_a_window_that_is_over_is_not_ended_again(boss: Client) -> None:
    window = make_past()

    response = post_yes(boss, f"{RULES}freezes/{window.pk}/end/", follow=True)

    assert "The freeze window ended at" in rendered(response)
    assert boss.post(f"{RULES}freezes/999/end/").status_code == 404


def test_an_operator_of_one_model_freezes_that_one_only(client: Client) -> None:
    digits, everything = make_model(), make_freeze()
    make_model("faces")
    log_in_operator(client, digits)
    data = {"ends_at": sent(database_now() + HOUR), "reason": "fair"}

    form = text_of(client).split('action="/rollouts/rules/freezes/"')[1].split("</form>")[0]

    assert 'value="digits"' in form
    assert "faces" not in form
    assert "All models" not in form
    assert client.post(f"{RULES}freezes/", data).status_code == 403
    assert client.post(f"{RULES}freezes/", data | {"model": "faces"}).status_code == 403
    assert client.post(f"{RULES}freezes/{everything.pk}/end/").status_code == 403
    assert client.post(f"{RULES}freezes/", data | {"model": "digits"}).status_code == 302


# --- The limit ----------------------------------------------------------------------------------


def test_the_limit_is_set_and_taken_away(boss: Client) -> None:
    make_baking(make_model())

    boss.post(f"{RULES}limit/", {"concurrent_max": "3"})
    text = text_of(boss)
    boss.post(f"{RULES}limit/", {"concurrent_max": ""})

    assert "At most <b>3</b> may be under way" in text
    assert "Under way now: 1" in text
    assert concurrent_max() is None


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5", "9" * 12])
def test_a_limit_that_is_none_is_refused_beside_the_field(boss: Client, limit: str) -> None:
    set_concurrent_max(limit=2, actor=ANNA)

    response = boss.post(f"{RULES}limit/", {"concurrent_max": limit})

    assert response.status_code == 400
    assert "errorlist" in rendered(response)
    assert concurrent_max() == 2


# --- Quarantine ---------------------------------------------------------------------------------


def make_quarantined() -> Quarantine:
    rollout = make_baking(make_model())
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="it answers nonsense")
    version = rollout.target
    held, _ = Quarantine.objects.update_or_create(
        version=version, defaults={"rollout": rollout, "reason": "slow", "at": database_now()}
    )
    return held


def test_a_quarantine_tells_why_and_by_which_rollout(boss: Client) -> None:
    held = make_quarantined()

    table = text_of(boss).split('id="quarantined"')[1]

    assert "digits:2" in table
    assert "slow" in table
    assert f"/rollouts/{held.rollout_id}/" in table


def test_a_quarantine_is_lifted_with_a_reason_only(boss: Client) -> None:
    make_quarantined()
    address = f"{RULES}quarantine/digits/2/lift/"

    refused = boss.post(address, {"reason": " "})
    assert refused.status_code == 400
    assert "Required; why is the version trusted again" in rendered(refused)
    boss.post(address, {"reason": "the fault was elsewhere"})

    assert not Quarantine.objects.exists()
    assert AuditEntry.objects.get(action="quarantine.lifted").actor == "boss"
    again = boss.post(address, {"reason": "twice"}, follow=True)
    assert "is not in quarantine" in rendered(again)


# --- Who may ------------------------------------------------------------------------------------


def test_who_may_change_nothing_sees_all_and_no_form(client: Client) -> None:
    make_quarantined()
    window = make_freeze()
    client.force_login(User.objects.create_user("vera"))

    body = text_of(client).split('<main id="main">')[1].split("</main>")[0]

    assert "the fair" in body
    assert "digits:2" in body
    assert "<form" not in body
    for address in (f"freezes/{window.pk}/end/", "limit/", "quarantine/digits/2/lift/"):
        assert client.post(f"{RULES}{address}").status_code == 403
