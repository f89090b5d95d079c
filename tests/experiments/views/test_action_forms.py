"""Shipping a variant, changing weights: forms name what is wrong and keep what was typed."""

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


def test_the_winner_is_shipped_by_one_click(operator: Client) -> None:
    make_plan()
    make_analysed(stored_result())
    assert "Ship strong" in text_of(operator, PAGE)

    answer = post_yes(operator, f"{PAGE}ship/", revision() | {"variant": "strong"}, headers=HTMX)

    rollout = Rollout.objects.get()
    assert answer.headers["HX-Redirect"] == f"/rollouts/{rollout.pk}/"
    assert Experiment.objects.get().conclusion == "shipped"
    assert f"/rollouts/{rollout.pk}/" in text_of(operator, PAGE)


def test_without_a_winner_there_is_no_click_and_a_reason_is_needed(operator: Client) -> None:
    make_plan()
    make_analysed(stored_result(metric(winner=None)))
    assert "Ship strong" not in text_of(operator, PAGE)

    refused = post_yes(operator, f"{PAGE}ship/", revision() | {"variant": "strong"})
    by_force = revision() | {"variant": "strong", "force": "on"}
    unsaid = post_yes(operator, f"{PAGE}ship/", by_force)
    forced = post_yes(operator, f"{PAGE}ship/", by_force | {"reason": "I know"})

    assert (refused.status_code, unsaid.status_code, forced.status_code) == (409, 400, 302)
    assert "There is no winner yet; force it" in refused.content.decode()
    assert "Shipping by force needs one" in unsaid.content.decode()


def test_one_click_that_is_refused_leads_to_what_it_takes(operator: Client) -> None:
    make_plan()
    make_analysed(stored_result())

    answer = operator.post(f"{PAGE}ship/", {"revision": 0, "variant": "strong"}, headers=HTMX)

    assert answer.headers["HX-Redirect"] == f"{PAGE}ship/"
    assert "was changed meanwhile" in text_of(operator, f"{PAGE}ship/")
    assert not Rollout.objects.exists()


def test_the_ship_page_says_what_speaks_against_each(operator: Client) -> None:
    make_analysed(stored_result(metric(winner=None)))

    page = text_of(operator, f"{PAGE}ship/")

    assert "What speaks against strong" in page
    assert "strong (digits:2)" in page
    assert "weak (digits:1)" not in page


def test_a_variant_that_is_not_offered_is_refused(operator: Client) -> None:
    make_analysed(stored_result())

    answer = operator.post(f"{PAGE}ship/", revision() | {"variant": "weak"})

    assert answer.status_code == 400
    assert "Select a valid choice" in answer.content.decode()


@pytest.mark.parametrize("move", ["ship", "weights"])
def test_what_is_not_under_way_is_sent_back(operator: Client, move: str) -> None:
    make_draft()

    answer = operator.get(f"{PAGE}{move}/", follow=True)

    assert answer.redirect_chain[-1][0] == PAGE
    assert "weak-or-strong is draft" in answer.content.decode()


def test_weights_are_changed_with_a_reason(operator: Client) -> None:
    make_running()
    sent = {"weight-0": "90", "weight-1": "10", "reason": "carefully"}

    answer = operator.post(f"{PAGE}weights/", revision() | sent)

    experiment = Experiment.objects.get()
    assert answer.headers["Location"] == PAGE
    assert list(experiment.variants.values_list("weight_bp", flat=True)) == [9_000, 1_000]
    assert "weak 90 %, strong 10 %" in text_of(operator, PAGE)


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"weight-0": "90", "weight-1": "9"}, 400, "Weights sum to 9900 basis points"),
        ({"weight-0": "", "weight-1": "100"}, 400, "This field is required"),
        ({"weight-0": "50", "weight-1": "50"}, 400, "the weights are unchanged"),
        ({"weight-0": "0", "weight-1": "100"}, 400, "needs a weight above 0"),
        ({"weight-0": "90", "weight-1": "10", "revision": "0"}, 409, "was changed meanwhile"),
    ],
)
def test_wrong_weights_are_named_and_change_nothing(
    operator: Client, sent: dict[str, str], status: int, message: str
) -> None:
    make_running()

    answer = operator.post(f"{PAGE}weights/", {**revision(), "reason": "why", **sent})

    assert answer.status_code == status
    assert message in answer.content.decode()
    assert 'value="why"' in answer.content.decode()
    weights = Experiment.objects.get().variants.values_list("weight_bp", flat=True)
    assert list(weights) == [5_000, 5_000]
