"""Making, starting, advancing and stopping experiments: what is refused, and what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from apps.experiments.models import Experiment, ExperimentEvent, Metric
from apps.experiments.services import (
    VariantSpec,
    advance_experiment,
    create_metric,
    start_experiment,
    stop_experiment,
)
from apps.experiments.states import ExperimentState
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry, Deployment, LiveSplit
from apps.models.states import DeploymentState
from apps.rollouts.models import PublishedTable
from contract.routing import ExperimentSplit, decode
from tests.experiments.factories import (
    ANNA,
    HALVES,
    NOW,
    expose,
    make_draft,
    make_metric,
    make_model,
    make_running,
    make_version,
    observe,
    set_deployments,
)

pytestmark = pytest.mark.django_db

WEAK, STRONG = HALVES
OTHER_SIGNATURE = {"inputs": [], "outputs": []}


def latest_split(model: str = "digits") -> Any:
    table = PublishedTable.objects.order_by("-generation").first()
    assert table is not None
    return decode(bytes(table.document)).models[model].split


def test_a_draft_has_its_variants_an_event_and_an_audit_entry() -> None:
    experiment = make_draft()

    assert experiment.state == ExperimentState.DRAFT
    assert [(v.name, v.version.number, v.weight_bp) for v in experiment.variants.all()] == [
        ("weak", 1, 5_000),
        ("strong", 2, 5_000),
    ]
    assert experiment.events.get().to_state == "draft"
    assert AuditEntry.objects.get(action="experiment.created").actor == "anna"
    assert experiment.inclusion_salt != experiment.variant_salt


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([WEAK], "2 to 20 variants, not 1"),
        ([WEAK, replace(STRONG, weight_bp=4_999)], "weights sum to 9999 basis points"),
        ([WEAK, replace(STRONG, weight_bp=-1)], "weight_bp is -1"),
        ([WEAK, replace(STRONG, is_control=True)], "exactly one variant is the control, not 2"),
        ([replace(WEAK, is_control=False), STRONG], "exactly one variant is the control, not 0"),
        ([WEAK, replace(STRONG, name="weak")], "two variants are named weak"),
        ([WEAK, replace(STRONG, name="stable")], "reserved"),
        ([WEAK, replace(STRONG, name="a b")], "A name has"),
        ([WEAK, replace(STRONG, version_number=9)], "digits has no version 9"),
        (
            [replace(WEAK, weight_bp=0), replace(STRONG, weight_bp=10_000)],
            "control variant weak needs a weight above 0",
        ),
    ],
)
def test_it_refuses_variants_that_make_no_experiment(
    variants: list[VariantSpec], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        make_draft(variants=variants)

    assert not Experiment.objects.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coverage_bp": 0}, "coverage_bp is 0"),
        ({"coverage_bp": 10_001}, "coverage_bp is 10001"),
        ({"planned_units": 0}, "planned_units is 0"),
        ({"alpha_ppm": 0}, "alpha_ppm is 0"),
        ({"name": "a/b"}, "name: A name has"),
        ({"name": ""}, "name: "),
    ],
)
def test_it_refuses_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        make_draft(**fields)


def test_it_refuses_a_model_without_a_stable_version() -> None:
    model = make_model()
    model.stable = None
    model.save()

    with pytest.raises(Invalid, match="digits has no stable version"):
        make_draft(model=model)


def test_it_refuses_a_version_of_another_signature() -> None:
    model = make_model(versions=1)
    make_version(model, 2, signature=OTHER_SIGNATURE)

    with pytest.raises(Invalid, match="digits:2 has another signature"):
        make_draft(model=model)


def test_it_refuses_a_name_that_is_taken() -> None:
    first = make_draft()

    with pytest.raises(Conflict, match="exists already"):
        make_draft(model=first.model, metric=first.metric)


def test_a_metric_is_refused_with_a_bad_kind_or_a_name_that_is_taken() -> None:
    create_metric(name="revenue", kind="mean", actor=ANNA)

    with pytest.raises(Conflict):
        create_metric(name="revenue", kind="mean", actor=ANNA)
    with pytest.raises(Invalid, match="kind"):
        create_metric(name="other", kind="median", actor=ANNA)
    assert Metric.objects.get().direction == "increase"


def test_starting_takes_the_split_and_places_the_versions() -> None:
    experiment = make_draft()

    start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    assert experiment.state == ExperimentState.PREPARING
    split = LiveSplit.objects.get(owner_id=experiment.pk)
    assert (split.kind, split.document) == (LiveSplit.Kind.EXPERIMENT, {})
    placed = Deployment.objects.order_by("version__number")
    assert [(d.version.number, d.state) for d in placed] == [(1, "loading"), (2, "loading")]


def test_it_does_not_start_beside_another_live_split() -> None:
    experiment = make_draft()
    other = make_draft(name="other", model=experiment.model, metric=experiment.metric)
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    with pytest.raises(Conflict, match="already has a live experiment"):
        start_experiment(experiment=other, actor=ANNA, now=NOW)

    other.refresh_from_db()
    assert other.state == ExperimentState.DRAFT


def test_it_refuses_a_stale_revision() -> None:
    experiment = make_draft()

    with pytest.raises(Conflict, match="changed meanwhile"):
        start_experiment(experiment=experiment, actor=ANNA, now=NOW, revision=7)


def test_of_two_who_start_at_once_one_is_told_so() -> None:
    experiment = make_draft()
    same = Experiment.objects.get(pk=experiment.pk)
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    with pytest.raises(Conflict):
        start_experiment(experiment=same, actor=ANNA, now=NOW)

    assert ExperimentEvent.objects.filter(to_state="preparing").count() == 1


def test_it_does_not_start_when_stable_has_changed_its_signature_meanwhile() -> None:
    experiment = make_draft()
    model = experiment.model
    model.stable = make_version(model, 3, signature=OTHER_SIGNATURE)
    model.save()

    with pytest.raises(Invalid, match="another signature"):
        start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    assert not LiveSplit.objects.exists()


def test_it_waits_until_all_versions_are_ready() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    Deployment.objects.filter(version__number=1).update(state=DeploymentState.READY)

    assert not advance_experiment(experiment=experiment, now=NOW)

    assert experiment.state == ExperimentState.PREPARING


def test_it_runs_when_all_are_ready_and_is_in_the_table() -> None:
    experiment = make_running(coverage_bp=2_500)

    split = latest_split()

    assert experiment.state == ExperimentState.RUNNING
    assert isinstance(split, ExperimentSplit)
    assert (split.id, split.coverage_bp) == (str(experiment.pk), 2_500)
    assert [(v.name, v.version, v.weight_bp) for v in split.variants] == [
        ("weak", "1", 5_000),
        ("strong", "2", 5_000),
    ]
    assert experiment.generation == PublishedTable.objects.order_by("-generation")[0].generation


def test_a_version_that_cannot_be_loaded_fails_it_with_the_servers_message() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    Deployment.objects.filter(version__number=2).update(
        state=DeploymentState.FAILED, reason="failed to load 'digits', no such file"
    )

    assert advance_experiment(experiment=experiment, now=NOW)

    assert experiment.state == ExperimentState.FAILED
    assert "digits:2 cannot be loaded: failed to load 'digits', no such file" in experiment.reason
    assert not LiveSplit.objects.exists()


def test_a_version_that_was_unloaded_meanwhile_is_placed_again() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    set_deployments(experiment, DeploymentState.ABSENT)

    advance_experiment(experiment=experiment, now=NOW)

    assert set(Deployment.objects.values_list("state", flat=True)) == {"loading"}


def test_stopping_freezes_the_result_and_gives_the_split_back() -> None:
    experiment = make_running()
    expose(experiment, "u", "weak")
    observe(experiment.metric, "u", 1.0)
    later = NOW + timedelta(hours=1)

    stop_experiment(experiment=experiment, actor=ANNA, now=later, reason="seen enough")

    experiment.refresh_from_db()
    assert (experiment.state, experiment.reason) == ("completed", "seen enough")
    assert experiment.ended_at == experiment.refreshed_at == later
    assert experiment.result["quality"]["exposed"] == 1
    assert latest_split() is None
    assert not LiveSplit.objects.exists()
    assert json.dumps(experiment.result, allow_nan=False)


def test_one_that_prepares_can_be_stopped_and_leaves_no_split() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)

    assert experiment.state == ExperimentState.COMPLETED
    assert not LiveSplit.objects.exists()


@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_draft_and_a_completed_one_cannot_be_stopped(stopped_before: bool) -> None:
    experiment = make_running() if stopped_before else make_draft()
    if stopped_before:
        stop_experiment(experiment=experiment, actor=ANNA, now=NOW)

    with pytest.raises(Conflict, match="cannot become completed"):
        stop_experiment(experiment=experiment, actor=ANNA, now=NOW)


def test_a_model_is_free_for_the_next_one_afterwards() -> None:
    experiment = make_running()
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)
    following = make_draft(name="next", model=experiment.model, metric=make_metric("speed"))

    start_experiment(experiment=following, actor=ANNA, now=NOW)

    assert LiveSplit.objects.get().owner_id == following.pk
