"""Snapshots: each has a URL whose content never changes."""

from __future__ import annotations

import uuid

import pytest
from django.test import Client

from apps.experiments.models import ResultSnapshot
from tests.experiments.factories import make_draft, make_model
from tests.experiments.stored import metric, stored_result
from tests.experiments.views.pages import PAGE, make_analysed, store, text_of

pytestmark = pytest.mark.django_db


def test_a_snapshot_does_not_change_with_later_results(operator: Client) -> None:
    experiment = make_analysed(stored_result())

    operator.post(f"{PAGE}snapshots/", {"note": "before the weekend"})
    store(experiment, stored_result(metric(verdict="Something else.")))

    snapshot = ResultSnapshot.objects.get()
    page = text_of(operator, f"{PAGE}snapshots/{snapshot.pk}/")
    assert "strong is better than weak" in page
    assert "Something else." not in page
    assert "before the weekend" in page
    assert f"snapshots/{snapshot.pk}/" in text_of(operator, PAGE)


def test_a_snapshot_is_available_as_csv_and_json(operator: Client) -> None:
    make_analysed(stored_result())
    operator.post(f"{PAGE}snapshots/")
    snapshot = ResultSnapshot.objects.get()

    table = operator.get(f"{PAGE}snapshots/{snapshot.pk}/results.csv")
    document = operator.get(f"{PAGE}snapshots/{snapshot.pk}/results.json")

    assert table.content.decode().count("\n") == 3
    assert document.json() == snapshot.result


def test_there_is_no_snapshot_before_the_first_result(operator: Client) -> None:
    make_draft()

    response = operator.post(f"{PAGE}snapshots/", follow=True)

    assert "has no result yet" in response.content.decode()
    assert not ResultSnapshot.objects.exists()


def test_a_snapshot_belongs_to_its_experiment(operator: Client) -> None:
    experiment = make_analysed(stored_result())
    operator.post(f"{PAGE}snapshots/")
    snapshot = ResultSnapshot.objects.get()
    make_draft(name="other", model=make_model("letters"), metric=experiment.metric)

    assert operator.get(f"/experiments/other/snapshots/{snapshot.pk}/").status_code == 404
    assert operator.get(f"{PAGE}snapshots/{uuid.uuid4()}/").status_code == 404
    assert operator.get(f"{PAGE}snapshots/x/").status_code == 404


def test_a_viewer_can_read_and_not_create_snapshots(viewer: Client) -> None:
    make_analysed(stored_result())

    assert viewer.post(f"{PAGE}snapshots/").status_code == 403
    assert "Create snapshot" not in text_of(viewer, PAGE)
