"""Action buttons: each acts on the shown revision, or shows the reason and changes nothing."""

from __future__ import annotations

from functools import partial

import pytest
from django.test import Client

from apps.experiments.models import Experiment
from apps.experiments.services import pause_experiment
from tests.confirming import post_yes
from tests.experiments.factories import ANNA, NOW, make_draft, make_running
from tests.experiments.views.pages import HTMX, PAGE, text_of

pytestmark = pytest.mark.django_db


def revision() -> dict[str, int]:
    return {"revision": Experiment.objects.get().revision}


def test_an_operator_starts_and_stops_it(operator: Client) -> None:
    experiment = make_draft()

    started = post_yes(operator, f"{PAGE}start/", {"revision": 0}, headers=HTMX)
    stopped = post_yes(operator, f"{PAGE}stop/", {"revision": 1, "reason": "seen enough"})

    experiment.refresh_from_db()
    assert started.headers["HX-Redirect"] == stopped.headers["Location"] == PAGE
    assert experiment.state == "completed"
    assert "seen enough" in text_of(operator, PAGE)


def test_an_operator_pauses_resumes_and_abandons_it(operator: Client) -> None:
    experiment = make_running()
    states = []

    for move in ("pause", "resume", "abandon"):
        act = operator.post if move == "resume" else partial(post_yes, operator)
        act(f"{PAGE}{move}/", revision())
        experiment.refresh_from_db()
        states.append(experiment.state)

    assert states == ["paused", "running", "completed"]
    assert experiment.conclusion == "abandoned"


def test_a_requested_refresh_is_due_at_once(operator: Client) -> None:
    experiment = make_running()

    operator.post(f"{PAGE}refresh/", revision())

    experiment.refresh_from_db()
    assert experiment.refresh_due_at is not None


def test_a_draft_is_deleted(operator: Client) -> None:
    make_draft()

    response = post_yes(operator, f"{PAGE}delete/", revision())

    assert response.headers["Location"] == "/experiments/"
    assert not Experiment.objects.exists()


def test_a_running_experiment_is_not_deleted(operator: Client) -> None:
    make_running()

    response = operator.post(f"{PAGE}delete/", revision(), headers=HTMX)

    assert response.status_code == 409
    assert "only a draft can be deleted" in response.content.decode()


@pytest.mark.parametrize("sent", [{"revision": 3}, {}, {"revision": "x"}])
def test_a_stale_page_changes_nothing_and_says_so(operator: Client, sent: dict[str, str]) -> None:
    experiment = make_draft()

    plain = operator.post(f"{PAGE}start/", sent, follow=True)
    fragment = operator.post(f"{PAGE}start/", sent, headers=HTMX)

    experiment.refresh_from_db()
    assert experiment.state == "draft"
    assert fragment.status_code in {400, 409}
    for response in (plain, fragment):
        page = response.content.decode()
        assert "has changed" in page or "no valid revision" in page
    assert fragment.content.decode().startswith('<div id="live"')


def test_of_two_concurrent_pauses_the_second_is_a_conflict(operator: Client) -> None:
    experiment = make_running()
    shown = revision()
    pause_experiment(experiment=experiment, actor=ANNA, now=NOW)

    response = operator.post(f"{PAGE}pause/", shown, headers=HTMX)

    assert response.status_code == 409
    assert 'id="resume"' in response.content.decode()


def test_a_reason_that_is_too_long_is_refused(operator: Client) -> None:
    make_running()

    response = operator.post(f"{PAGE}pause/", revision() | {"reason": "x" * 1_001})

    assert response.status_code == 400
    assert Experiment.objects.get().state == "running"


@pytest.mark.parametrize(
    "move", ["start", "pause", "resume", "stop", "abandon", "refresh", "delete", "ship", "weights"]
)
def test_a_viewer_sees_no_button_and_may_not_act(viewer: Client, move: str) -> None:
    make_draft()

    assert f"/{move}/" not in text_of(viewer, PAGE)
    assert viewer.post(f"{PAGE}{move}/").status_code == 403
    assert Experiment.objects.get().state == "draft"


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        ("draft", {"start", "edit", "delete"}),
        ("preparing", {"stop", "abandon"}),
        ("running", {"ship", "weights", "refresh", "pause", "stop", "abandon"}),
        ("paused", {"ship", "weights", "refresh", "resume", "stop", "abandon"}),
        ("completed", set()),
    ],
)
def test_only_allowed_actions_are_offered(operator: Client, state: str, offered: set[str]) -> None:
    make_draft()
    Experiment.objects.update(state=state)

    page = text_of(operator, PAGE)

    moves = {"start", "edit", "delete", "stop", "abandon", "ship", "weights", "refresh"}
    assert {m for m in moves | {"pause", "resume"} if f'{PAGE}{m}/"' in page} == offered
