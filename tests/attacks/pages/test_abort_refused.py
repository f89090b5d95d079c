"""A stale page got 409 for its abort after a step, and after a promotion no button rolled back.

The abort button works from every state of the page and of the rollout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from apps.lib.clock import database_now
from apps.models.models import RegisteredModel
from apps.rollouts.models import Quarantine, Rollout, RolloutEvent
from apps.rollouts.services import abort_rollout, promote_now
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from controlplane.models import ApiToken
from tests.attacks.pages.conftest import Visit
from tests.attacks.pages.rows import baking, pass_step, pause, promoted
from tests.rollouts.factories import (
    ANNA,
    latest,
    make_instance,
    make_person,
)

PHONE = {"width": 390, "height": 844}


def open_rollout(page: Page, rollout: Rollout) -> None:
    page.goto(f"/rollouts/{rollout.pk}/")
    expect(page.locator("#live")).to_be_visible()


def abort(page: Page) -> None:
    page.locator("#abort").click()
    page.locator("#confirm-yes").click()


def test_a_page_from_before_a_step_aborts(visit: Visit) -> None:
    rollout, page = baking(), visit()
    # The page does not notice that it is stale.
    page.route("**/live/**", lambda route: route.abort())
    open_rollout(page, rollout)
    pass_step(rollout)

    abort(page)

    expect(page.locator("h1 + .badge")).to_have_text(re.compile("rolling back"))
    assert latest().models["digits"].split is None


@pytest.mark.parametrize("phase", ["paused", "promoting"])
def test_a_confirmation_from_before_a_change_of_state_still_aborts(
    visit: Visit, phase: str
) -> None:
    rollout, page = baking(), visit()
    open_rollout(page, rollout)
    page.locator("#abort").click()
    expect(page.locator("#confirm-yes")).to_be_visible()
    if phase == "paused":
        pause(rollout, "a check said so")
    else:
        promote_now(rollout=rollout, actor=ANNA, now=database_now())

    page.locator("#confirm-yes").click()

    expect(page.locator("h1 + .badge")).to_have_text(re.compile("rolling back"))
    route = latest().models["digits"]
    assert (route.stable, route.split) == ("1", None)


def test_after_a_promotion_the_same_button_rolls_back(visit: Visit) -> None:
    rollout, page = promoted(), visit()
    open_rollout(page, rollout)
    button = page.locator("#abort")
    expect(button).to_have_text(re.compile("Roll back to 1"))

    abort(page)

    expect(page.locator("h1")).to_have_text(re.compile("2 → 1"))
    assert latest().models["digits"].stable == "1"
    assert Quarantine.objects.get().version.number == 2


def test_a_page_from_before_the_promotion_rolls_back_too(visit: Visit) -> None:
    make_instance()
    rollout, page = baking(), visit()
    page.route("**/live/**", lambda route: route.abort())
    open_rollout(page, rollout)
    promote_now(rollout=rollout, actor=ANNA, now=database_now())
    tick_rollouts()

    abort(page)

    expect(page.locator("h1")).to_have_text(re.compile("2 → 1"))
    assert latest().models["digits"].stable == "1"


def test_it_needs_no_script_and_asks_why_afterwards(visit: Visit) -> None:
    rollout, page = baking(), visit(java_script_enabled=False)
    open_rollout(page, rollout)

    page.locator("#abort").click()
    expect(page.locator("#confirm-text")).to_contain_text("goes back to version 1")
    rollout.refresh_from_db()
    assert rollout.phase == Phase.BAKING
    page.locator("#confirm-yes").click()
    page.locator("#why-reason").fill("wrong labels")
    page.locator("#say-why").click()

    expect(page.locator("#live")).to_contain_text("wrong labels")
    rollout.refresh_from_db()
    assert (rollout.lacks_reason, rollout.reason) == (False, "aborted manually: wrong labels")
    assert "wrong labels" in Quarantine.objects.get().reason
    assert RolloutEvent.objects.latest("id").reason == "wrong labels"


def test_its_shortcut_is_not_triggered_by_typing(visit: Visit) -> None:
    rollout, page = baking(), visit()
    open_rollout(page, rollout)
    expect(page.locator("#abort kbd")).to_have_text("a")

    page.keyboard.press("a")
    expect(page.locator("#confirm-yes")).to_be_focused()
    page.keyboard.press("Enter")

    expect(page.locator("#why")).to_be_visible()
    page.locator("#why-reason").press_sequentially("a bad batch")
    expect(page.locator("#why-reason")).to_have_value("a bad batch")
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_it_stays_visible_as_the_largest_and_first_button(
    visit: Visit, scheme: str
) -> None:
    rollout = baking()
    pause(rollout, "error-rate could not decide")
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme)
    open_rollout(page, rollout)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")

    red = page.locator("#abort").bounding_box()
    other = page.locator("#resume").bounding_box()

    assert red is not None
    assert other is not None
    assert red["y"] > PHONE["height"] / 2
    assert red["y"] + red["height"] <= PHONE["height"]
    assert red["x"] < other["x"]
    assert red["width"] * red["height"] > 1.3 * other["width"] * other["height"]
    assert red["height"] >= 44


def test_two_aborts_at_once_are_one(visit: Visit) -> None:
    rollout, page = baking(), visit()
    page.route("**/live/**", lambda route: route.abort())
    open_rollout(page, rollout)
    page.locator("#abort").click()
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="too many errors")

    page.locator("#confirm-yes").click()

    expect(page.locator("#live")).to_contain_text("Too many errors")
    expect(page.locator("main > .notice.bad:visible")).to_have_count(0)
    assert RegisteredModel.objects.get().stable.number == 1  # type: ignore[union-attr]


def interlock(web: str, secret: str, *words: str) -> str:
    """Run the command as a shell does; return what it prints."""
    program = "import sys; from cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--url", web, *words]
    env = {**os.environ, "INTERLOCK_TOKEN": secret}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_the_command_does_what_the_page_does(web: str, transactional_db: None) -> None:
    rollout = promoted()
    make_person("bob")
    _, secret = ApiToken.issue(user_id=User.objects.get(username="bob").pk, name="ci")

    output = interlock(web, secret, "abort", str(rollout.pk))

    assert "Record the reason of the abort: interlock reason" in output
    assert latest().models["digits"].stable == "1"
    back = Rollout.objects.get(kind=Rollout.Kind.ROLLBACK)
    interlock(web, secret, "reason", str(back.pk), "wrong labels")
    back.refresh_from_db()
    assert back.lacks_reason is False
