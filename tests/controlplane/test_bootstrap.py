"""Bootstrap creates missing rows and does not change those of people."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.core.management import call_command

from apps.models.models import ServingCluster
from apps.rollouts.models import ClusterOrigin, Plan, PublishedTable
from apps.rollouts.plans import document_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def environment(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.TRITON_URLS = ["http://triton:8000"]
    monkeypatch.setenv("INTERLOCK_ADMIN_USERNAME", "root")
    monkeypatch.setenv("INTERLOCK_ADMIN_PASSWORD", "a long password")


def bootstrap() -> str:
    out = StringIO()
    call_command("bootstrap", stdout=out)
    return out.getvalue()


def test_a_new_installation_becomes_usable() -> None:
    output = bootstrap()
    assert "admin root created, cluster default created, plans canary, careful-canary" in output
    assert User.objects.get(username="root").check_password("a long password")
    steps = document_of(Plan.objects.get(is_default=True)).as_followed().steps
    assert [step.weight_bp for step in steps] == [500, 1_000, 2_500, 5_000, 9_500]
    assert PublishedTable.objects.get().generation == 1


def test_a_second_start_changes_nothing() -> None:
    bootstrap()
    Plan.objects.exclude(is_default=True).delete()
    Plan.objects.update(margin_bp=77)
    assert "nothing to do; routing table generation 1" in bootstrap()
    assert Plan.objects.get().margin_bp == 77


def test_the_default_cluster_follows_the_environment(settings: Any) -> None:
    bootstrap()
    settings.TRITON_URLS = ["http://triton:9000"]
    assert "cluster default moved; routing table generation 2" in bootstrap()
    assert ServingCluster.objects.get().endpoints == ["http://triton:9000"]


def test_a_cluster_changed_by_a_person_is_kept(settings: Any) -> None:
    bootstrap()
    ServingCluster.objects.update(endpoints=["http://triton:8000", "http://second:8000"])
    for _ in range(2):
        settings.TRITON_URLS = ["http://triton:9000"]
        assert "cluster default keeps http://triton:8000, http://second:8000" in bootstrap()
    assert ServingCluster.objects.get().endpoints == ["http://triton:8000", "http://second:8000"]


def test_a_cluster_set_to_the_environments_values_follows_it_again(
    settings: Any,
) -> None:
    bootstrap()
    settings.TRITON_URLS = ["http://triton:9000"]
    ServingCluster.objects.update(endpoints=["http://triton:9000"])
    assert "nothing to do" in bootstrap()
    settings.TRITON_URLS = ["http://triton:9001"]
    assert "cluster default moved" in bootstrap()


@pytest.mark.parametrize("changed", [True, False])
def test_without_an_origin_the_admin_log_shows_changes_of_a_cluster(
    settings: Any, changed: bool
) -> None:
    bootstrap()
    ClusterOrigin.objects.all().delete()
    cluster, person = ServingCluster.objects.get(), User.objects.get()
    if changed:
        LogEntry.objects.log_actions(person.pk, [cluster], CHANGE, change_message="endpoints")
    settings.TRITON_URLS = ["http://triton:9000"]
    bootstrap()
    moved = ServingCluster.objects.get().endpoints == ["http://triton:9000"]
    assert moved is not changed


def test_without_a_password_no_admin_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_ADMIN_PASSWORD", "")
    assert "set INTERLOCK_ADMIN_PASSWORD" in bootstrap()
    assert not User.objects.exists()
