"""Forms to ship a variant and to change weights: they show errors and keep the input."""

from __future__ import annotations

import pytest
from django.test import Client

from apps.experiments.models import Experiment
from apps.rollouts.models import Rollout
from tests.confirming import post_yes
from tests.experiments.factories import make_draft, make_running
from tests.experiments.stored import metric, stored_result
from tests.experiments.test_ship import make_plan
from tests.experiments.views.pages import HTMX, PAGE, make_analysed, text_of

pytestmark = pytest.mark.django_db


def revision() -> dict[str, int]:
    return {"revision": Experiment.objects.get().revision}


def test_one_click_ships_the_winner(operator: Client) -> None:
    make_plan()
    make_analysed(stored_result())
    assert "Ship strong" in text_of(operator, PAGE)

    response = post_yes(operator, f"{PAGE}ship/", revision() | {"variant": "strong"}, headers=HTMX)

    rollout = Rollout.objects.get()
    assert response.headers["HX-Redirect"] == f"/rollouts/{rollout.pk}/"
    assert Experiment.objects.get().conclusion == "shipped"
    assert f"/rollouts/{rollout.pk}/" in text_of(operator, PAGE)


def test_without_a_winner_shipping_needs_force_and_a_reason(operator: Client) -> None:
    make_plan()
    make_analysed(stored_result(metric(winner=None)))
    assert "Ship strong" not in text_of(operator, PAGE)

    refused = post_yes(operator, f"{PAGE}ship/", revision() | {"variant": "strong"})
    by_force = revision() | {"variant": "strong", "force": "on"}
    without_reason = post_yes(operator, f"{PAGE}ship/", by_force)
    forced = post_yes(operator, f"{PAGE}ship/", by_force | {"reason": "I know"})

    assert (refused.status_code, without_reason.status_code, forced.status_code) == (409, 400, 302)
    assert "There is no winner yet; to ship anyway" in refused.content.decode()
    assert "Required with force" in without_reason.content.decode()


def test_a_refused_click_redirects_to_the_form(operator: Client) -> None:
    make_plan()
    make_analysed(stored_result())

    response = operator.post(f"{PAGE}ship/", {"revision": 0, "variant": "strong"}, headers=HTMX)

    assert response.headers["HX-Redirect"] == f"{PAGE}ship/"
    assert "has changed" in text_of(operator, f"{PAGE}ship/")
    assert not Rollout.objects.exists()


def test_the_ship_page_lists_the_doubts_about_each_variant(operator: Client) -> None:
    make_analysed(stored_result(metric(winner=None)))

    page = text_of(operator, f"{PAGE}ship/")

    assert "Doubts about strong" in page
    assert "strong (digits:2)" in page
    assert "weak (digits:1)" not in page


def test_a_variant_that_is_not_offered_is_refused(operator: Client) -> None:
    make_analysed(stored_result())

    response = operator.post(f"{PAGE}ship/", revision() | {"variant": "weak"})

    assert response.status_code == 400
    assert "Select a valid choice" in response.content.decode()


@pytest.mark.parametrize("move", ["ship", "weights"])
def test_a_draft_redirects_to_its_page(operator: Client, move: str) -> None:
    make_draft()

    response = operator.get(f"{PAGE}{move}/", follow=True)

    assert response.redirect_chain[-1][0] == PAGE
    assert "weak-or-strong is draft" in response.content.decode()


def test_weights_are_changed_with_a_reason(operator: Client) -> None:
    make_running()
    sent = {"weight-0": "90", "weight-1": "10", "reason": "carefully"}

    response = operator.post(f"{PAGE}weights/", revision() | sent)

    experiment = Experiment.objects.get()
    assert response.headers["Location"] == PAGE
    assert list(experiment.variants.values_list("weight_bp", flat=True)) == [9_000, 1_000]
    assert "weak 90 %, strong 10 %" in text_of(operator, PAGE)


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"weight-0": "90", "weight-1": "9"}, 400, "Weights sum to 9900 basis points"),
        ({"weight-0": "", "weight-1": "100"}, 400, "This field is required"),
        ({"weight-0": "50", "weight-1": "50"}, 400, "the weights are unchanged"),
        ({"weight-0": "0", "weight-1": "100"}, 400, "needs a weight above 0"),
        ({"weight-0": "90", "weight-1": "10", "revision": "0"}, 409, "has changed"),
    ],
)
def test_invalid_weights_show_an_error_and_change_nothing(
    operator: Client, sent: dict[str, str], status: int, message: str
) -> None:
    make_running()

    response = operator.post(f"{PAGE}weights/", {**revision(), "reason": "why", **sent})

    assert response.status_code == status
    assert message in response.content.decode()
    assert 'value="why"' in response.content.decode()
    weights = Experiment.objects.get().variants.values_list("weight_bp", flat=True)
    assert list(weights) == [5_000, 5_000]
