"""Nothing is unloaded that somebody may still call."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.models.models import Deployment, RegisteredModel
from apps.models.services import change_deployment
from apps.models.states import DeploymentState
from apps.rollouts import retirement
from apps.rollouts.publication import latest_table
from apps.rollouts.retirement import needed_versions, retire_versions
from contract.routing import decode
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the versions that were unloaded."""
    numbers: list[int] = []

    def unload(row: Deployment) -> bool:
        numbers.append(row.version.number)
        change_deployment(row, DeploymentState.ABSENT, "unloaded", ANNA, database_now())
        return True

    monkeypatch.setattr(retirement, "unload_deployment", unload)
    return numbers


def age() -> None:
    Deployment.objects.update(changed_at=database_now() - timedelta(hours=1))


def states() -> dict[int, str]:
    rows = Deployment.objects.values_list("version__number", "state")
    return dict(rows)


def test_stable_the_previous_one_and_a_splits_versions_are_wanted() -> None:
    model = make_model(versions=5)
    numbers = {v.number: v for v in model.versions.all()}
    model.previous_stable = numbers[3]
    model.rollback_until = database_now() + timedelta(hours=1)
    model.save()
    make_baking(model)
    now = database_now()
    assert needed_versions(now) == {numbers[n].pk for n in (1, 2, 3)}
    assert numbers[3].pk not in needed_versions(now + timedelta(hours=2))


def test_an_unwanted_version_leaves_the_table_before_it_is_unloaded(unloaded: list[int]) -> None:
    make_baking(make_model())
    age()
    retire_versions()
    assert states() == {1: "ready", 2: "ready", 3: "draining"}
    table = latest_table()
    assert table is not None
    assert set(decode(bytes(table.document)).models["digits"].versions) == {"1", "2"}
    assert not unloaded


def test_it_waits_for_an_instance_that_still_routes_to_it(unloaded: list[int]) -> None:
    make_model(versions=2)
    make_instance("late", applied_generation=0)
    age()
    retire_versions()
    age()
    retire_versions()
    assert not unloaded


def test_what_all_have_left_is_unloaded_after_it_drained(unloaded: list[int]) -> None:
    make_model(versions=2)
    make_instance()
    age()
    retire_versions()
    retire_versions()
    assert not unloaded
    age()
    retire_versions()
    assert unloaded == [2]
    assert states() == {1: "ready", 2: "absent"}


def test_a_version_that_is_asked_for_by_its_own_path_stays(unloaded: list[int]) -> None:
    make_model(versions=3)
    send("digits", 3)
    age()
    retire_versions()
    assert states() == {1: "ready", 2: "draining", 3: "ready"}


def test_what_keeps_a_version_loaded_is_told_on_its_page() -> None:
    make_model(versions=2)
    make_instance("late", applied_generation=0)
    age()
    retire_versions()
    age()
    retire_versions()
    reason = Deployment.objects.get(version__number=2).reason
    assert reason == "waiting for instance late, which still serves generation 0"


def test_a_version_that_was_just_placed_is_left_alone(unloaded: list[int]) -> None:
    make_model(versions=2)
    assert retire_versions() == 0
    assert RegisteredModel.objects.exists()
    assert states() == {1: "ready", 2: "ready"}


def test_one_that_cannot_be_unloaded_keeps_no_other_one_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_model(versions=3)
    Deployment.objects.filter(version__number__gt=1).update(
        state=DeploymentState.DRAINING, changed_at=database_now() - timedelta(hours=1)
    )
    unloaded: list[int] = []

    def unload(row: Deployment) -> bool:
        if row.version.number == 2:
            raise OSError("the repository is read-only")
        unloaded.append(row.version.number)
        return True

    monkeypatch.setattr(retirement, "unload_deployment", unload)
    assert retire_versions() == 1
    assert unloaded == [3]
