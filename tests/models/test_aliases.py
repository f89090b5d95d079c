"""Aliases in both directions: `champion` is pushed to MLflow; for others the last move wins."""

from __future__ import annotations

from typing import Any

import pytest

from apps.lib.actors import Actor
from apps.lib.errors import Invalid, NotFound, Unavailable
from apps.models.aliases import copy_aliases, delete_alias, move_alias
from apps.models.models import Alias, AuditEntry, ModelVersion, RegisteredModel
from apps.models.registry import sync_registry
from tests.models.registries import Mlflow, client_of
from tests.rollouts.factories import make_version

pytestmark = pytest.mark.django_db

ANNA = Actor("anna")


def version(number: int) -> ModelVersion:
    return ModelVersion.objects.select_related("model").get(number=number)


def crown(number: int) -> None:
    """Set champion to a version, as a rollout does."""
    Alias.objects.update_or_create(
        model=version(number).model, name="champion", defaults={"version": version(number)}
    )


def ours() -> dict[str, int]:
    return dict(Alias.objects.values_list("name", "version__number"))


def audit_trail() -> list[tuple[str, str]]:
    entries = AuditEntry.objects.filter(action__startswith="alias.").order_by("id")
    return [(entry.actor, entry.action) for entry in entries]


@pytest.fixture
def synced(mlflow: Mlflow) -> Mlflow:
    sync_registry()
    AuditEntry.objects.all().delete()
    return mlflow


def test_champion_goes_to_mlflow_once(synced: Mlflow) -> None:
    crown(2)
    assert sync_registry().pushed == ("digits@champion",)
    assert sync_registry().pushed == ()
    assert synced.names()["champion"] == 2
    assert audit_trail() == [("interlock", "alias.pushed")]


def test_champion_follows_the_next_rollout(synced: Mlflow) -> None:
    crown(1)
    sync_registry()
    crown(2)
    sync_registry()
    assert synced.names()["champion"] == 2
    assert audit_trail() == [("interlock", "alias.pushed")] * 2


@pytest.mark.parametrize("moved_to", ["2", ""])
def test_a_champion_moved_in_mlflow_is_restored_and_audited(
    synced: Mlflow, caplog: pytest.LogCaptureFixture, moved_to: str
) -> None:
    crown(1)
    sync_registry()
    synced.name_alias("champion", moved_to)
    sync_registry()
    assert synced.names()["champion"] == 1
    assert audit_trail()[-1] == ("interlock", "alias.restored")
    assert "alias.restored digits@champion" in caplog.text


def test_a_champion_from_before_interlock_stays_until_something_is_stable(synced: Mlflow) -> None:
    synced.name_alias("champion", "1")
    assert sync_registry().pushed == ()
    assert synced.names()["champion"] == 1
    assert "champion" not in ours()


def test_a_champion_that_was_uploaded_is_not_written(synced: Mlflow) -> None:
    synced.name_alias("champion", "1")
    make_version(version(1).model, 9)
    crown(9)
    assert sync_registry().pushed == ()
    assert synced.names()["champion"] == 1


def test_a_champion_is_written_when_mlflow_is_back(synced: Mlflow) -> None:
    crown(2)
    synced.is_away = True
    with pytest.raises(Unavailable):
        sync_registry()
    synced.is_away = False
    assert sync_registry().pushed == ("digits@champion",)


def test_a_champion_that_mlflow_deleted_does_not_block_others(synced: Mlflow) -> None:
    crown(2)
    synced.numbers = [1]
    assert sync_registry().pushed == ()
    assert ours()["champion"] == 2


def test_an_alias_moved_here_goes_to_mlflow(synced: Mlflow) -> None:
    move_alias(name="candidate", version=version(1), actor=ANNA)
    assert Alias.objects.get(name="candidate").is_pending
    assert sync_registry().pushed == ("digits@candidate",)
    assert (synced.names(), ours()) == ({"candidate": 1}, {"candidate": 1})
    assert not Alias.objects.get(name="candidate").is_pending
    assert audit_trail() == [("anna", "alias.moved"), ("interlock", "alias.pushed")]


def test_the_last_move_wins(synced: Mlflow) -> None:
    move_alias(name="candidate", version=version(1), actor=ANNA)
    sync_registry()
    synced.name_alias("candidate", "2")
    assert sync_registry().aliases == 1
    assert ours() == {"candidate": 2}
    assert audit_trail()[-1] == ("mlflow", "alias.moved")


def test_an_older_listing_does_not_overwrite_a_move(synced: Mlflow) -> None:
    with client_of(synced) as client:
        listed = {model.name: model for model in client.models()}
    before = Alias.objects.get(name="candidate").changed_at
    move_alias(name="candidate", version=version(1), actor=ANNA)
    sync_registry()
    assert copy_aliases(listed, before) == 0
    assert ours() == {"candidate": 1}


def test_an_alias_set_to_an_upload_is_deleted_in_mlflow(synced: Mlflow) -> None:
    uploaded = make_version(version(1).model, 9)
    move_alias(name="candidate", version=uploaded, actor=ANNA)
    sync_registry()
    assert synced.names() == {}
    assert sync_registry().aliases == 0
    assert ours() == {"candidate": 9}
    synced.name_alias("candidate", "1")
    sync_registry()
    assert ours() == {"candidate": 1}


def test_an_alias_of_a_version_deleted_in_mlflow_is_given_up(synced: Mlflow) -> None:
    synced.numbers = [1]
    move_alias(name="blessed", version=version(2), actor=ANNA)
    sync_registry()
    assert audit_trail()[1:] == [("interlock", "alias.refused")]
    sync_registry()
    assert [call for call in synced.written if call[1] == "blessed"] == [("POST", "blessed", "2")]


def test_an_alias_of_a_version_that_is_not_here_is_deleted(synced: Mlflow) -> None:
    synced.numbers, synced.missing = [1, 2, 3], {"3"}
    synced.name_alias("candidate", "3")
    sync_registry()
    assert ours() == {}


def test_without_mlflow_an_alias_is_not_pending(settings: Any) -> None:
    settings.MLFLOW_TRACKING_URI = ""
    version = make_version(RegisteredModel.objects.create(name="m"), 1)
    assert not move_alias(name="candidate", version=version, actor=ANNA).is_pending


@pytest.mark.parametrize("name", ["champion", "latest", "7", "v7", "a b", "", "a/b", "x" * 101])
def test_an_invalid_alias_is_refused(synced: Mlflow, name: str) -> None:
    with pytest.raises(Invalid):
        move_alias(name=name, version=version(1), actor=ANNA)
    assert not audit_trail()


def test_an_alias_is_deleted_here_and_in_mlflow(synced: Mlflow) -> None:
    delete_alias(model=version(1).model, name="candidate", actor=ANNA)
    assert (synced.names(), ours()) == ({}, {})
    assert sync_registry().aliases == 0
    with pytest.raises(NotFound):
        delete_alias(model=version(1).model, name="candidate", actor=ANNA)


def test_an_alias_is_not_deleted_while_mlflow_is_away(synced: Mlflow) -> None:
    synced.is_away = True
    with pytest.raises(Unavailable):
        delete_alias(model=version(1).model, name="candidate", actor=ANNA)
    assert ours() == {"candidate": 2}
