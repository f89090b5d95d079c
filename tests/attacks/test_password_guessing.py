"""Password guesses are counted, locked out and audited; over a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User

from apps.models.models import AuditEntry
from controlplane.models import ApiToken

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "a long enough one"


@pytest.fixture
def anna() -> User:
    return User.objects.create_user("anna", password=PASSWORD, is_staff=True)


@pytest.fixture
def browser(live_server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server.url) as client:
        yield client


def log_in(
    browser: httpx.Client, name: str, password: str, heard: str = "", page: str = "/login/"
) -> httpx.Response:
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', browser.get(page).text)
    data = {
        "username": name,
        "password": password,
        "csrfmiddlewaretoken": token[1] if token else "",
    }
    return browser.post(page, data=data, headers={"X-Forwarded-For": heard} if heard else {})


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("pk").values_list("action", flat=True))


@pytest.mark.parametrize("page", ["/login/", "/admin/login/"])
def test_guesses_are_locked_out_and_audited(browser: httpx.Client, anna: User, page: str) -> None:
    answers = [log_in(browser, "anna", f"guess {n}", page=page).status_code for n in range(8)]
    assert answers == [200] * 4 + [429] * 4
    # The right password is not checked either, and no one learns that it was right.
    assert log_in(browser, "anna", PASSWORD, page=page).status_code == 429
    assert actions() == ["login.failed"] * 4 + ["login.locked"]
    entry = AuditEntry.objects.latest("pk")
    assert (entry.target, entry.origin) == ("anna", "127.0.0.1")
    assert log_in(browser, "bob", "x").status_code == 200


def test_a_lock_does_not_affect_tokens(browser: httpx.Client, anna: User) -> None:
    _, secret = ApiToken.issue(user_id=anna.pk, name="ci")
    for n in range(6):
        log_in(browser, "anna", f"guess {n}")
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{browser.base_url}/api/v1/models/", headers=headers).status_code == 200


def test_many_addresses_or_many_names_are_locked_out_too(
    browser: httpx.Client, anna: User, settings: Any
) -> None:
    settings.PROXIES, settings.LOGIN_FAILURES_WIDE_MAX = 1, 6
    for n in range(6):
        assert log_in(browser, "anna", "guess", heard=f"1.2.3.4, 10.0.0.{n}").status_code == 200
    assert log_in(browser, "anna", PASSWORD, heard="10.0.0.99").status_code == 429
    for n in range(6):
        assert log_in(browser, f"name-{n}", "guess", heard="10.0.1.1").status_code == 200
    assert log_in(browser, "anne", "guess", heard="10.0.1.1").status_code == 429


def test_a_forged_client_address_is_ignored(browser: httpx.Client, anna: User) -> None:
    answers = [log_in(browser, "anna", "guess", heard=f"10.0.0.{n}") for n in range(5)]
    assert answers[-1].status_code == 429


def test_logins_and_logouts_are_audited(browser: httpx.Client, anna: User) -> None:
    for n in range(3):
        log_in(browser, "anna", f"guess {n}")
    assert log_in(browser, "anna", PASSWORD).status_code == 302
    token = browser.cookies["csrftoken"]
    browser.post("/logout/", headers={"X-CSRFToken": token})
    assert actions() == ["login.failed"] * 3 + ["login.succeeded", "logout"]
    # A success clears the failures before it.
    assert log_in(browser, "anna", "guess").status_code == 200


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b", "", "<b>&'\""])
def test_unusual_names_are_only_refused(browser: httpx.Client, anna: User, name: str) -> None:
    assert log_in(browser, name, "guess").status_code == 200
