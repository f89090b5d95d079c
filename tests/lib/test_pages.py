"""Page or fragment, 204 for a stamp that is current, errors as pages, Plotly's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.http import HttpResponse
from django.test import RequestFactory
from django_htmx.middleware import HtmxDetails

from apps.lib.errors import Conflict, Forbidden, Unavailable
from apps.lib.pages import PlotlyFinder, go_to, page, render_live, stamp_of

HTMX = {"HTTP_HX_REQUEST": "true"}


def make_request(path: str = "/", **headers: str) -> Any:
    request: Any = RequestFactory().get(path, **headers)
    request.htmx = HtmxDetails(request)
    request.user = AnonymousUser()
    return request


def answer(request: Any) -> HttpResponse:
    return render_live(
        request,
        template="parts/badge.html",
        fragment="parts/messages.html",
        stamp="now",
        context=lambda: {"state": "ready", "tone": "good"},
    )


def test_it_renders_the_page_for_a_browser() -> None:
    response = answer(make_request())

    assert b"ready" in response.content


def test_it_renders_the_fragment_for_htmx() -> None:
    response = answer(make_request(**HTMX))

    assert response.status_code == 200
    assert b"ready" not in response.content


def test_it_answers_204_while_the_stamp_is_current() -> None:
    response = answer(make_request("/?stamp=now", **HTMX))

    assert (response.status_code, response.content) == (204, b"")


def test_a_browser_gets_the_page_with_any_stamp() -> None:
    assert answer(make_request("/?stamp=now")).status_code == 200


def test_a_stamp_separates_its_parts() -> None:
    assert stamp_of("a", "b") != stamp_of("ab")
    assert stamp_of(1, None) == stamp_of(1, None)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Forbidden("no"), 403), (Conflict("taken"), 409), (Unavailable("away"), 503)],
)
def test_it_answers_our_errors_with_their_status_and_message(error: Any, status: int) -> None:
    @page
    def view(request: Any) -> HttpResponse:
        raise error

    response = view(make_request())

    assert response.status_code == status
    assert error.message in response.content.decode()


def test_it_redirects_the_way_the_sender_understands() -> None:
    assert go_to(make_request(), "overview").headers["location"] == "/"
    assert go_to(make_request(**HTMX), "overview").headers["hx-redirect"] == "/"


def test_the_finder_serves_only_plotly() -> None:
    finder = PlotlyFinder()

    assert Path(finder.find("plotly/plotly.min.js")).stat().st_size > 1_000_000
    assert finder.find("plotly/widgetbundle.js") == []
    assert [path for path, _ in finder.list(None)] == ["plotly.min.js"]
