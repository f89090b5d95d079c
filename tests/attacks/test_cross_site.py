"""What another site can make a browser do: it has the cookie, but neither token nor our name."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import get_resolver, reverse

from apps.models.models import ModelVersion
from tests.attacks.test_confirmed_everywhere import _posts
from tests.attacks.test_without_login import pages
from tests.rollouts.factories import make_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser() -> Client:
    """A logged-in browser, on a page of another site."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    return client


def test_no_page_takes_a_post_of_another_site(browser: Client) -> None:
    taken = set(_posts(get_resolver().url_patterns))
    posts = [(name, path) for name, path in pages(get_resolver().url_patterns) if name in taken]
    assert len(posts) > 50
    for name, path in posts:
        assert browser.post(path, {"confirmed": "yes"}).status_code == 403, name


def test_the_api_takes_a_session_only_with_its_token(browser: Client) -> None:
    make_model()
    path = "/api/v1/models/digits/versions/3/"
    for method, address in (("post", f"{path}archive/"), ("delete", path)):
        answer = getattr(browser, method)(address, b"{}", content_type="application/json")
        assert answer.status_code == 403
        assert "CSRF" in answer.json()["error"]["message"]
    assert ModelVersion.objects.get(number=3).is_active


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1.attacker.example", "a\\b"])
def test_a_foreign_host_name_gets_no_answer(browser: Client, host: str) -> None:
    """As in DNS rebinding: our address, under the name of another site."""
    for path in (reverse("overview"), "/api/v1/models/", "/login/"):
        assert browser.get(path, headers={"host": host}).status_code == 400


def test_no_other_site_shows_ours_in_a_frame(browser: Client) -> None:
    answer = browser.get(reverse("overview"))
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
