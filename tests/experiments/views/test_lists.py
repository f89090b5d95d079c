"""The list of experiments: its empty state, states, verdicts and filters."""

from __future__ import annotations

import pytest
from django.test import Client

from apps.experiments.models import Metric
from apps.experiments.services import MetricChoice
from tests.experiments.factories import make_draft, make_metric, make_model
from tests.experiments.stored import guardrail, metric, stored_result
from tests.experiments.views.pages import make_analysed, text_of

pytestmark = pytest.mark.django_db


def test_an_empty_list_explains_experiments(viewer: Client) -> None:
    page = text_of(viewer, "/experiments/")

    assert "No experiments yet" in page
    assert "/experiments/metrics/" in page


def test_the_list_shows_state_verdict_units_and_guardrails(viewer: Client) -> None:
    make_analysed(stored_result(metric(), guardrail("errors")))

    page = text_of(viewer, "/experiments/")

    assert "running" in page
    assert "strong is better than weak" in page
    assert "1,040" in page
    assert '<span class="good-text">all hold</span>' in page


def test_a_row_without_a_result_has_dashes(viewer: Client) -> None:
    make_draft()

    page = text_of(viewer, "/experiments/")

    assert 'data-label="Units" class="num">–' in page
    assert 'class="quiet-text">–' in page


def test_the_list_is_filtered_by_model_and_state(viewer: Client) -> None:
    make_analysed(stored_result())
    accuracy = [MetricChoice(Metric.objects.get())]
    make_draft(name="other", model=make_model("letters"), metrics=accuracy)

    assert "/experiments/other/" not in text_of(viewer, "/experiments/?model=digits")
    assert "weak-or-strong" not in text_of(viewer, "/experiments/?state=draft")
    assert "No experiments match the filter" in text_of(viewer, "/experiments/?state=failed")
    assert "Unknown model or state" in text_of(viewer, "/experiments/?model=x")


def test_pages_keep_the_filter(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.experiments.views.lists.PAGE_SIZE", 1)
    model, uses = make_model(), [MetricChoice(make_metric())]
    for name in ("one", "two"):
        make_draft(name=name, model=model, metrics=uses)

    page = text_of(viewer, "/experiments/?state=draft")

    assert 'href="?state=draft&amp;page=2"' in page
