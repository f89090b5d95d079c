"""Irreversible actions ran without confirmation before the charts had loaded, and after refreshes.

The server asks for confirmation, so no button acts without it, whatever the browser's scripts have
done.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from apps.rollouts.models import PublishedTable, Rollout
from apps.rollouts.states import Phase
from tests.attacks.pages.conftest import Visit
from tests.attacks.pages.rows import baking, pause

BUTTONS = ["abort", "skip", "promote-now"]
USABLE_WITHIN_S = 0.5
SEEN_WITHIN_S = 2.0
# A slow phone: bytes per second, and milliseconds per round trip.
THROTTLED = {"downloadThroughput": 200_000, "uploadThroughput": 90_000, "latency": 40}


def unchanged(rollout: Rollout, before: tuple[Any, ...]) -> bool:
    rollout.refresh_from_db()
    return state_of(rollout) == before


def state_of(rollout: Rollout) -> tuple[Any, ...]:
    return rollout.phase, rollout.step_index, PublishedTable.objects.count()


def press(page: Page, button: str) -> None:
    """Press a button of the page, also one in the menu More."""
    if button in {"skip", "promote-now"}:
        page.locator("#more").evaluate("box => { box.open = true }")
    page.locator(f"#{button}").click(no_wait_after=True)


@pytest.mark.parametrize("held", ["**/*.js", "**/plotly*"])
@pytest.mark.parametrize("button", BUTTONS)
def test_no_button_acts_unasked_while_a_script_is_on_its_way(
    visit: Visit, button: str, held: str
) -> None:
    rollout, page = baking(), visit()
    waiting: list[Route] = []
    page.route(held, lambda route: waiting.append(route))
    page.goto(f"/rollouts/{rollout.pk}/", wait_until="commit")
    expect(page.locator("#abort")).to_be_visible()
    before = state_of(rollout)

    press(page, button)

    expect(page.locator("#confirm-yes")).to_be_visible()
    assert waiting
    assert unchanged(rollout, before)
    for each in waiting:
        each.abort()


# Presses the button in the same task in which a refresh added it to the page.
AS_SOON_AS_IT_IS_NEW = """
button => new Promise((pressed) => {
  const watcher = new MutationObserver((changes) => {
    const fresh = changes.some((each) => [...each.addedNodes].some((node) => node.id === "live"));
    if (!fresh) return;
    watcher.disconnect();
    document.getElementById(button).click();
    pressed();
  });
  watcher.observe(document.body, { childList: true, subtree: true });
})
"""


@pytest.mark.parametrize("button", BUTTONS)
def test_no_button_acts_unasked_right_after_a_refresh(visit: Visit, button: str) -> None:
    rollout, page = baking(), visit()
    page.goto(f"/rollouts/{rollout.pk}/")
    page.wait_for_load_state("networkidle")
    # Something changes, so the next poll replaces the live part.
    Rollout.objects.filter(pk=rollout.pk).update(reason="something else")
    before = state_of(rollout)

    page.evaluate(AS_SOON_AS_IT_IS_NEW, button)

    expect(page.locator("#confirm-yes")).to_be_visible()
    assert unchanged(rollout, before)


def test_presses_in_the_first_50_ms_after_each_refresh_are_all_asked(visit: Visit) -> None:
    rollout, page = baking(), visit()
    page.goto(f"/rollouts/{rollout.pk}/")
    before = state_of(rollout)
    for delay_ms in (0, 5, 10, 20, 30, 40, 50):
        Rollout.objects.filter(pk=rollout.pk).update(reason=f"look {delay_ms}")
        page.locator("#live", has_text=f"ook {delay_ms}").wait_for(state="attached")
        page.wait_for_timeout(delay_ms)
        press(page, "promote-now")
        expect(page.locator("#confirm-yes")).to_be_visible()
        assert unchanged(rollout, before)
        page.goto(f"/rollouts/{rollout.pk}/")


def test_a_page_is_usable_soon_after_it_has_arrived(visit: Visit) -> None:
    rollout, page = baking(), visit()
    # The server does its one-time work now.
    page.goto(f"/rollouts/{rollout.pk}/")
    taken = [_usable_after(visit(), rollout) for _ in range(3)]

    assert min(taken) < USABLE_WITHIN_S, taken


def _usable_after(page: Page, rollout: Rollout) -> float:
    """Return the seconds from the page's last byte until its buttons open the dialog."""
    line = page.context.new_cdp_session(page)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", {"offline": False, **THROTTLED})
    page.goto(f"/rollouts/{rollout.pk}/", wait_until="domcontentloaded")
    timing = page.evaluate("performance.getEntriesByType('navigation')[0].toJSON()")
    return float(timing["domContentLoadedEventEnd"] - timing["responseEnd"]) / 1000


def test_files_are_hashed_compressed_and_kept_for_ever(visit: Visit) -> None:
    rollout, page = baking(), visit()
    with page.expect_response(re.compile("plotly")) as charts:
        page.goto(f"/rollouts/{rollout.pk}/")

    answer = charts.value
    headers = answer.all_headers()
    assert re.search(r"plotly\.min\.[0-9a-f]{12}\.js$", answer.url)
    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) < 1_600_000
    assert "immutable" in headers["cache-control"]
    expect(page.locator("#errors .main-svg").first).to_be_attached()


def test_a_stale_promotion_is_refused_and_not_asked(visit: Visit) -> None:
    rollout, page = baking(), visit()
    page.route("**/live/**", lambda route: route.abort())
    page.goto(f"/rollouts/{rollout.pk}/")
    pause(rollout, "a check said so")
    before = state_of(rollout)

    press(page, "promote-now")

    expect(page.locator(".notice.bad", has_text="changed in the meantime")).to_be_visible()
    assert unchanged(rollout, before)


def test_an_open_dialog_shows_that_the_state_has_changed(visit: Visit) -> None:
    rollout, page = baking(), visit()
    page.goto(f"/rollouts/{rollout.pk}/")
    press(page, "promote-now")
    expect(page.locator("#confirm-yes")).to_be_visible()
    expect(page.locator("#confirm-changed")).to_be_hidden()

    pause(rollout, "error-rate could not decide")

    expect(page.locator("#confirm-changed")).to_contain_text("could not decide")
    page.locator("#confirm-yes").click()
    expect(page.locator(".notice.bad", has_text="changed in the meantime")).to_be_visible()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.PAUSED


@pytest.mark.parametrize("viewer", ["rollout", "model"])
def test_two_people_see_each_others_action_within_two_seconds(visit: Visit, viewer: str) -> None:
    rollout = baking()
    olga, ada = visit("olga"), visit("ada")
    ada.goto(f"/rollouts/{rollout.pk}/" if viewer == "rollout" else "/models/digits/")
    olga.goto(f"/rollouts/{rollout.pk}/")
    expect(olga.locator("#pause")).to_be_visible()
    ada.wait_for_load_state("load")

    taken = [_seen_after(olga, ada, button) for button in ("pause", "resume", "pause")]

    # A busy machine may delay one of them.
    assert min(taken) < SEEN_WITHIN_S, taken


def _seen_after(actor: Page, watcher: Page, button: str) -> float:
    """Return the seconds between the actor's and another person's view of the action."""
    actor.locator(f"#{button}").click()
    words = re.compile(f"{button}d manually", re.IGNORECASE)
    actor.locator("#live", has_text=words).wait_for()
    acted = time.monotonic()
    watcher.locator("#live", has_text=words).wait_for()
    return time.monotonic() - acted
