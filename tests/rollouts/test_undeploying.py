"""Versions and models that nothing needs leave; what is needed stays, and says what needs it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.deletion import finish_deletions
from apps.models.models import (
    CANDIDATE,
    Alias,
    AuditEntry,
    Deployment,
    ModelRole,
    ModelVersion,
    RegisteredModel,
    Registration,
)
from apps.models.services import deploy_version
from apps.models.states import DeploymentState, RegistryState
from apps.rollouts import undeploying
from apps.rollouts.models import Rollout
from apps.rollouts.phases import set_phase
from apps.rollouts.services import rollback_model, start_rollout
from apps.rollouts.states import Phase
from tests.experiments.factories import make_draft, make_running
from tests.rollouts.factories import (
    ANNA,
    latest,
    make_baking,
    make_instance,
    make_model,
    make_person,
    send,
)

pytestmark = pytest.mark.django_db

OF_VERSION = [
    undeploying.undeploy_version, undeploying.archive_version, undeploying.delete_version,
]  # fmt: skip
OF_MODEL = [undeploying.archive_model, undeploying.delete_model]


def version(number: int, name: str = "digits") -> ModelVersion:
    return ModelVersion.objects.select_related("model").get(model__name=name, number=number)


def act(service: Callable[..., Any], on: ModelVersion | RegisteredModel, **more: Any) -> Any:
    what = {"model" if isinstance(on, RegisteredModel) else "version": on}
    return service(**what, actor=ANNA, now=database_now(), **more)


def states() -> dict[int, str]:
    return dict(Deployment.objects.values_list("version__number", "state"))


def absent(number: int) -> None:
    Deployment.objects.filter(version__number=number).update(state=DeploymentState.ABSENT)


# --- what is refused -----------------------------------------------------------------------------


def needed_as_stable() -> int:
    make_model()
    return 1


def needed_for_a_rollback() -> int:
    model = make_model(stable=2)
    model.previous_stable = model.versions.get(number=1)
    model.rollback_until = database_now() + timedelta(hours=1)
    model.save()
    return 1


def needed_by_a_rollout() -> int:
    make_baking(make_model())
    return 2


def needed_by_a_rollout_that_goes_back() -> int:
    set_phase(make_baking(make_model()), Phase.ROLLING_BACK, "worse", ANNA, database_now())
    return 2


def needed_by_an_experiment() -> int:
    make_running()
    return 2


def needed_by_a_draft() -> int:
    make_draft()
    return 2


def needed_while_it_loads() -> int:
    make_model()
    Deployment.objects.filter(version__number=3).update(state=DeploymentState.LOADING)
    return 3


def needed_by_who_asks_for_it() -> int:
    make_model()
    send("digits", 3)
    return 3


NEEDED = {
    needed_as_stable: "it is the stable version of digits",
    needed_for_a_rollback: "it is kept for an instant rollback until",
    needed_by_a_rollout: "the rollout to version 2 is baking",
    needed_by_a_rollout_that_goes_back: "the rollout to version 2 is rolling_back",
    needed_by_an_experiment: "experiment weak-or-strong compares it (running)",
    needed_by_a_draft: "experiment weak-or-strong compares it (draft)",
    needed_while_it_loads: "digits:3 is loading on local",
    needed_by_who_asks_for_it: "it answered 60 requests in the last minute",
}


@pytest.mark.parametrize("service", OF_VERSION, ids=lambda service: service.__name__)
@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.__name__)
def test_a_version_that_is_needed_stays_and_says_why(
    needed: Callable[[], int], service: Callable[..., Any]
) -> None:
    row = version(needed())
    before, entries = states(), AuditEntry.objects.count()

    with pytest.raises(Conflict) as refused:
        act(service, row)

    assert NEEDED[needed] in refused.value.message
    assert refused.value.detail["needs"]
    assert states() == before
    assert AuditEntry.objects.count() == entries
    assert version(row.number).is_active


@pytest.mark.parametrize("service", OF_MODEL, ids=lambda service: service.__name__)
def test_a_model_in_service_is_neither_archived_nor_deleted(service: Callable[..., Any]) -> None:
    model = make_model()
    with pytest.raises(Conflict, match="version 1 is stable: undeploy the model first"):
        act(service, model)


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (needed_by_a_rollout, "the rollout to version 2 is baking"),
        (needed_by_an_experiment, "experiment weak-or-strong compares it (running)"),
        (needed_while_it_loads, "digits:3 is loading on local"),
        (lambda: make_model() and send("digits", 1), "it answered 60 requests in the last 10"),
        (
            lambda: make_model() and make_instance("i-2", pinned=["*"]),
            "instance i-2 has digits pinned to stable by its operator",
        ),
        (
            lambda: (
                make_model()
                and make_instance("i-2", reported_at=database_now() - timedelta(minutes=5))
            ),
            "instance i-2 is silent",
        ),
    ],
    ids=["rollout", "experiment", "loading", "asked", "pinned", "silent"],
)
def test_a_model_that_is_needed_stays_in_service(needed: Callable[[], Any], message: str) -> None:
    needed()
    model = RegisteredModel.objects.get()
    with pytest.raises(Conflict) as refused:
        act(undeploying.undeploy_model, model)
    assert message in refused.value.message
    model.refresh_from_db()
    assert model.stable is not None


def test_a_model_whose_version_is_being_registered_is_not_deleted() -> None:
    model = make_model(stable=None)
    now = database_now()
    Registration.objects.create(
        model_name="digits", uri="upload:x", actor="anna", created_at=now, stage_at=now
    )
    with pytest.raises(Conflict, match="a registration of one of its versions is not complete"):
        act(undeploying.delete_model, model)


# --- versions ------------------------------------------------------------------------------------


def test_an_undeployed_version_leaves_the_table_and_then_its_servers() -> None:
    make_model()
    act(undeploying.undeploy_version, version(3), reason="old")
    assert states() == {1: "ready", 2: "ready", 3: "draining"}
    assert set(latest().models["digits"].versions) == {"1", "2"}
    assert Deployment.objects.get(version__number=3).retired_generation == latest().generation
    entry = AuditEntry.objects.get(action="version.undeployed")
    assert (entry.actor, entry.target, entry.after) == ("anna", "digits:3", {"reason": "old"})


def test_repeating_is_harmless_and_told_once() -> None:
    make_model()
    for service in (*OF_VERSION, undeploying.delete_version):
        act(service, version(3))
        act(service, version(3))
    actions = AuditEntry.objects.filter(target="digits:3").order_by("pk")
    assert list(actions.values_list("action", flat=True)) == [
        "version.undeployed", "version.archived", "version.deletion_began",
    ]  # fmt: skip


def test_an_archived_version_gets_nothing_until_it_is_restored() -> None:
    model = make_model()
    act(undeploying.archive_version, version(3))
    starts: list[Callable[[], Any]] = [
        lambda: start_rollout(model=model, target=version(3), actor=ANNA, now=database_now()),
        lambda: deploy_version(version=version(3), actor=ANNA, now=database_now()),
        lambda: rollback_model(model=model, to=version(3), actor=ANNA, now=database_now()),
    ]
    for start in starts:
        with pytest.raises(Conflict, match="digits:3 is archived: restore it first"):
            start()

    act(undeploying.restore_version, version(3))
    deploy_version(version=version(3), actor=ANNA, now=database_now())
    assert states()[3] == "loading"


def test_nobody_is_offered_to_go_back_to_what_is_archived() -> None:
    model = make_model(stable=2)
    model.previous_stable = model.versions.get(number=1)
    model.rollback_until = database_now() - timedelta(hours=1)
    model.save()
    act(undeploying.archive_version, version(1))
    model.refresh_from_db()
    with pytest.raises(Conflict, match="no previous stable version"):
        rollback_model(model=model, actor=ANNA, now=database_now())


def test_what_is_deleted_is_not_restored_archived_or_started() -> None:
    model = make_model()
    act(undeploying.delete_version, version(3))
    for service in (undeploying.archive_version, undeploying.restore_version):
        with pytest.raises(Conflict, match="digits:3 is deleting"):
            act(service, version(3))
    with pytest.raises(Conflict, match="digits:3 is deleting"):
        start_rollout(model=model, target=version(3), actor=ANNA, now=database_now())


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path, settings: Any) -> dict[str, Path]:
    """Files of version 3 as registration and placing leave them, and a neighbour's."""
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    make_model()
    deployment = Deployment.objects.select_related("cluster").first()
    assert deployment is not None
    deployment.cluster.repository_path = str(tmp_path / "repository")
    deployment.cluster.save()
    places = {
        "artifact": settings.ARTIFACT_DIR / "digits" / "3",
        "repository": tmp_path / "repository" / "digits.3",
        "neighbour": settings.ARTIFACT_DIR / "digits" / "30",
        "beside": tmp_path / "repository" / "digits.30",
    }
    for place in places.values():
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(b"x")
    path = places["artifact"] / "model.onnx"
    ModelVersion.objects.filter(number=3).update(artifact_path=str(path))
    return places


def left(stored: dict[str, Path]) -> set[str]:
    return {name for name, path in stored.items() if path.exists()}


def test_files_go_once_the_version_has_left_its_servers(stored: dict[str, Path]) -> None:
    act(undeploying.delete_version, version(3), reason="private data")
    assert finish_deletions() == 0
    assert left(stored) == set(stored)
    assert "it is still loaded on local (private data)" in version(3).state_problem

    absent(3)
    assert finish_deletions() == 1
    assert left(stored) == {"neighbour", "beside"}
    row = version(3)
    assert (row.state, row.state_by, row.state_reason) == ("deleted", "anna", "private data")
    assert finish_deletions() == 0
    assert AuditEntry.objects.filter(action="version.deleted").count() == 1


def test_what_a_killed_worker_left_is_deleted_by_the_next_turn(
    stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.models import deletion

    act(undeploying.delete_version, version(3))
    absent(3)
    delete = deletion._delete_tree

    def die(path: Path) -> None:
        delete(path)
        raise SystemExit

    monkeypatch.setattr(deletion, "_delete_tree", die)
    with pytest.raises(SystemExit):
        finish_deletions()
    assert left(stored) == {"artifact", "neighbour", "beside"}
    assert version(3).state == "deleting"
    monkeypatch.setattr(deletion, "_delete_tree", delete)
    assert finish_deletions() == 1
    assert left(stored) == {"neighbour", "beside"}


def test_files_that_cannot_be_deleted_are_told_and_hold_nobody_up(
    stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.models import deletion

    for number in (2, 3):
        act(undeploying.delete_version, version(number))
        absent(number)
    delete = deletion._delete_tree

    def refuse(path: Path) -> None:
        if path.name in {"digits.3", "3"}:
            raise OSError("read-only file system")
        delete(path)

    monkeypatch.setattr(deletion, "_delete_tree", refuse)
    assert finish_deletions() == 1
    assert version(2).state == "deleted"
    assert version(3).state_problem == "its files cannot be deleted: read-only file system"


def test_a_file_that_lies_elsewhere_is_not_ours_to_delete(
    stored: dict[str, Path], tmp_path: Path
) -> None:
    foreign = tmp_path / "elsewhere" / "model.onnx"
    foreign.parent.mkdir()
    foreign.write_bytes(b"x")
    ModelVersion.objects.filter(number=3).update(artifact_path=str(foreign))
    act(undeploying.delete_version, version(3))
    absent(3)
    finish_deletions()
    assert foreign.exists()
    assert "artifact" in left(stored)


# --- what stays ----------------------------------------------------------------------------------


def test_history_of_a_deleted_version_stays() -> None:
    rollout = make_baking(make_model())
    set_phase(rollout, Phase.ROLLING_BACK, "worse", ANNA, database_now())
    set_phase(rollout, Phase.ROLLED_BACK, "worse", ANNA, database_now())
    rollout.refresh_from_db()
    from apps.models.services import release_split

    release_split(owner_id=rollout.pk)
    act(undeploying.delete_version, version(2))
    absent(2)
    finish_deletions()
    assert version(2).state == "deleted"
    assert str(Rollout.objects.select_related("target__model").get().target) == "digits:2"


def test_aliases_of_a_deleted_version_go() -> None:
    model = make_model()
    Alias.objects.create(model=model, name=CANDIDATE, version=version(3))
    act(undeploying.delete_version, version(3))
    assert not Alias.objects.exists()


# --- models --------------------------------------------------------------------------------------


def test_a_model_leaves_service_only_by_being_undeployed() -> None:
    model = make_model()
    Alias.objects.create(model=model, name="champion", version=version(1))
    make_person("olga", model=model)
    act(undeploying.undeploy_model, model)
    assert set(states().values()) == {"draining"}
    assert "digits" not in latest().models
    model.refresh_from_db()
    assert model.stable is None
    assert not Alias.objects.exists()

    act(undeploying.archive_model, model)
    act(undeploying.restore_model, model)
    act(undeploying.delete_model, model)
    assert not ModelRole.objects.filter(model=model).exists()
    Deployment.objects.update(state=DeploymentState.ABSENT)
    assert finish_deletions() == 4
    model.refresh_from_db()
    assert model.state == RegistryState.DELETED


def test_versions_of_an_archived_model_get_nothing() -> None:
    model = make_model(stable=None)
    act(undeploying.archive_model, model)
    with pytest.raises(Conflict, match="digits is archived: restore it first"):
        start_rollout(model=model, target=version(2), actor=ANNA, now=database_now())
