"""Archiving, deleting and undeploying versions and models with the buttons of the pages."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from apps.models.models import ModelVersion, RegisteredModel, Role
from tests.attacks.pages.conftest import Visit
from tests.attacks.pages.rows import baking
from tests.rollouts.factories import make_model

SIZES = [(1440, 900), (390, 844)]


def sized(visit: Visit, size: tuple[int, int]) -> Page:
    return visit("ada", Role.ADMIN, viewport={"width": size[0], "height": size[1]})


def fits(page: Page) -> bool:
    """Return whether nothing extends beyond the window's right edge."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def say_yes(page: Page) -> None:
    page.locator("#confirm-reason").fill("no longer used")
    page.locator("#confirm-yes").click()


@pytest.mark.parametrize("size", SIZES, ids=["desk", "phone"])
def test_a_version_is_archived_restored_and_deleted(visit: Visit, size: tuple[int, int]) -> None:
    make_model()
    page = sized(visit, size)
    page.goto("/models/digits/versions/3/")
    page.locator("#archive").click()
    expect(page.locator("#confirm-text")).to_contain_text("Archive digits:3?")
    assert ModelVersion.objects.get(number=3).is_active
    say_yes(page)
    expect(page.locator("#retire-title")).to_have_text("Archived")
    assert fits(page)

    page.goto("/models/digits/")
    expect(page.locator("#versions tbody tr")).to_have_count(2)
    page.locator("#show-archived").click()
    expect(page.locator("#versions tbody tr")).to_have_count(3)
    assert fits(page)
    page.goto("/models/digits/versions/3/")
    page.locator("#restore").click()
    expect(page.locator("#archive")).to_be_visible()
    page.locator("#delete").click()
    say_yes(page)
    expect(page.locator("#retire-title")).to_have_text("Deleted")
    expect(page.locator("#retire")).to_contain_text("ada: no longer used")


@pytest.mark.parametrize("size", SIZES, ids=["desk", "phone"])
def test_a_version_in_use_has_no_buttons_and_shows_its_users(
    visit: Visit, size: tuple[int, int]
) -> None:
    baking()
    page = sized(visit, size)
    page.goto("/models/digits/versions/2/")
    expect(page.locator("#needs li")).to_have_text("the rollout to version 2 is baking")
    expect(page.locator("#retire button")).to_have_count(0)
    assert fits(page)


@pytest.mark.parametrize("size", SIZES, ids=["desk", "phone"])
def test_a_model_is_undeployed_and_archived(visit: Visit, size: tuple[int, int]) -> None:
    make_model()
    page = sized(visit, size)
    page.goto("/models/digits/")
    page.locator("#undeploy").click()
    expect(page.locator("#confirm-text")).to_contain_text("get 404")
    say_yes(page)
    page.locator("#archive").click()
    say_yes(page)
    expect(page.locator("#retire-title")).to_have_text("Archived")
    assert fits(page)
    page.goto("/models/")
    expect(page.locator("#show-archived")).to_have_text(re.compile("Show 1 archived model"))
    page.locator("#show-archived").click()
    expect(page.locator("main, body").first).to_contain_text("digits")
    assert RegisteredModel.objects.get().is_archived


def test_without_scripts_the_same_is_done_on_pages(visit: Visit) -> None:
    make_model()
    page = visit("ada", Role.ADMIN, java_script_enabled=False)
    page.goto("/models/digits/versions/3/")
    page.get_by_text("Undeploy, archive or delete").click()
    page.locator("#delete").click()
    say_yes(page)
    assert ModelVersion.objects.get(number=3).state == "deleting"
