"""Starting, advancing, pausing and ending experiments: effects and refusals."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from apps.experiments.models import Experiment, ExperimentEvent, Metric
from apps.experiments.services import (
    abandon_experiment,
    advance_experiment,
    create_metric,
    enqueue_result_events,
    pause_experiment,
    request_refresh,
    resume_experiment,
    start_experiment,
    stop_experiment,
)
from apps.experiments.states import ExperimentState
from apps.lib.errors import Conflict, Invalid
from apps.models.models import Deployment, LiveSplit
from apps.models.states import DeploymentState
from apps.notifications.events import EVENTS, summarize_event
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.rollouts.models import PublishedTable
from apps.rollouts.tenants import create_tenant
from contract.routing import ExperimentSplit, decode
from tests.experiments.factories import (
    ANNA,
    HALVES,
    NOW,
    make_draft,
    make_metric,
    make_running,
    make_version,
    set_deployments,
)

pytestmark = pytest.mark.django_db

WEAK, STRONG = HALVES
WEAK2 = replace(STRONG, weight_bp=1)
THIRDS = [replace(WEAK, weight_bp=3_334), replace(STRONG, weight_bp=3_333)]
THIRDS += [replace(STRONG, name="again", weight_bp=3_333)]
OTHER_SIGNATURE: dict[str, Any] = {"inputs": [], "outputs": []}


def subscribe_all() -> None:
    """Subscribe a target to every event."""
    NotificationTarget.objects.create(
        name="team", kind="webhook", address="https://a.example/", created_by="anna", created_at=NOW
    )


def latest_split(model: str = "digits") -> Any:
    table = PublishedTable.objects.order_by("-generation").first()
    assert table is not None
    return decode(bytes(table.document)).models[model].split


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

    with pytest.raises(Conflict, match="has changed"):
        start_experiment(experiment=experiment, actor=ANNA, now=NOW, revision=7)


def test_of_two_concurrent_starts_one_is_a_conflict() -> None:
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

    with pytest.raises(Invalid, match="the signature of digits:1 differs"):
        start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    assert not LiveSplit.objects.exists()


def test_it_waits_until_all_versions_are_ready() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    Deployment.objects.filter(version__number=1).update(state=DeploymentState.READY)

    assert not advance_experiment(experiment=experiment, now=NOW)

    assert experiment.state == ExperimentState.PREPARING


def test_it_runs_when_all_versions_are_ready_and_is_in_the_routing_table() -> None:
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


def test_a_version_that_cannot_be_loaded_fails_it_with_the_server_message() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    Deployment.objects.filter(version__number=2).update(
        state=DeploymentState.FAILED, reason="failed to load 'digits', no such file"
    )

    assert advance_experiment(experiment=experiment, now=NOW)

    assert experiment.state == ExperimentState.FAILED
    assert "digits:2 cannot be loaded: failed to load 'digits', no such file" in experiment.reason
    assert not LiveSplit.objects.exists()


def test_an_unloaded_version_is_deployed_again() -> None:
    experiment = make_draft()
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    set_deployments(experiment, DeploymentState.ABSENT)

    advance_experiment(experiment=experiment, now=NOW)

    assert set(Deployment.objects.values_list("state", flat=True)) == {"loading"}


def test_stopping_ends_assignment_and_releases_the_split() -> None:
    experiment = make_running()
    later = NOW + timedelta(hours=1)

    stop_experiment(experiment=experiment, actor=ANNA, now=later, reason="seen enough")

    experiment.refresh_from_db()
    assert (experiment.state, experiment.reason) == ("completed", "seen enough")
    assert experiment.conclusion == Experiment.Conclusion.STOPPED
    # The tick computes the final result.
    assert experiment.ended_at == experiment.refresh_due_at == later
    assert latest_split() is None
    assert not LiveSplit.objects.exists()


def test_a_preparing_experiment_can_be_stopped_and_leaves_no_split() -> None:
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


def test_a_model_is_free_after_the_end() -> None:
    experiment = make_running()
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)
    following = make_draft(name="next", model=experiment.model, metric=make_metric("speed"))

    start_experiment(experiment=following, actor=ANNA, now=NOW)

    assert LiveSplit.objects.get().owner_id == following.pk


def test_a_running_experiment_is_in_the_routing_table_with_all_settings() -> None:
    create_tenant(name="acme", actor=ANNA, now=NOW)
    experiment = make_running(
        metric=create_metric(name="speed", kind="mean", source="latency", actor=ANNA),
        tenants=["acme"],
        headers={"X-Beta": ["on", "yes"]},
        holdout_bp=500,
        dimensions=["tenant", "X-Country"],
        stratify_by="tenant",
    )

    split = latest_split()

    assert (split.tenants, split.headers) == (("acme",), {"x-beta": ("on", "yes")})
    assert (split.holdout_salt, split.holdout_bp) == ("holdout:digits", 500)
    assert (split.dimensions, split.measured) == (("x-country",), True)
    assert experiment.dimensions == ["tenant", "x-country"]


def test_pausing_routes_to_stable_and_resuming_restores_the_split() -> None:
    experiment = make_running()
    before = latest_split()

    pause_experiment(experiment=experiment, actor=ANNA, now=NOW, reason="an incident")
    paused = latest_split()
    resume_experiment(experiment=experiment, actor=ANNA, now=NOW)

    assert paused is None
    assert latest_split() == before
    states = list(experiment.events.values_list("to_state", flat=True))[-3:]
    assert states == ["running", "paused", "running"]
    assert LiveSplit.objects.get().owner_id == experiment.pk


def test_it_is_not_resumed_while_a_version_is_not_ready() -> None:
    experiment = make_running()
    pause_experiment(experiment=experiment, actor=ANNA, now=NOW)
    Deployment.objects.filter(version__number=2).update(state=DeploymentState.FAILED)

    with pytest.raises(Conflict, match="digits:2 is not ready"):
        resume_experiment(experiment=experiment, actor=ANNA, now=NOW)


def test_of_two_concurrent_actions_the_second_is_a_conflict() -> None:
    experiment = make_running()
    same = Experiment.objects.get(pk=experiment.pk)
    pause_experiment(experiment=experiment, actor=ANNA, now=NOW)

    for late in (pause_experiment, stop_experiment, abandon_experiment):
        with pytest.raises(Conflict, match="meanwhile"):
            late(experiment=same, actor=ANNA, now=NOW)

    assert LiveSplit.objects.get().owner_id == experiment.pk


def test_an_abandoned_experiment_has_no_verdict_and_no_final_result() -> None:
    experiment = make_running()
    Experiment.objects.filter(pk=experiment.pk).update(
        result={"is_significant": True, "winner": "strong", "verdict": "strong is better"}
    )
    experiment.refresh_from_db()

    abandon_experiment(experiment=experiment, actor=ANNA, now=NOW, reason="wrong metric")

    experiment.refresh_from_db()
    assert (experiment.conclusion, experiment.refresh_due_at) == ("abandoned", None)
    assert (experiment.result["winner"], experiment.result["is_significant"]) == (None, False)
    assert "abandoned" in experiment.result["verdict"]
    assert experiment.snapshots.get().result["winner"] == "strong"


def test_subscribers_are_notified_of_each_transition() -> None:
    subscribe_all()
    experiment = make_running()
    pause_experiment(experiment=experiment, actor=ANNA, now=NOW, reason="an incident")
    resume_experiment(experiment=experiment, actor=ANNA, now=NOW)
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)

    sent = OutboxMessage.objects.filter(event__startswith="experiment.").order_by("created_at")

    assert {message.event for message in sent} == {
        f"experiment.{what}" for what in ("started", "paused", "resumed", "completed")
    }
    paused = sent.get(event="experiment.paused")
    assert paused.event in EVENTS
    assert summarize_event(paused.event, paused.payload) == (
        "weak-or-strong: experiment paused (an incident)"
    )


def test_significance_and_mismatch_are_notified_once() -> None:
    subscribe_all()
    experiment = make_running()
    result = {
        "is_significant": True,
        "verdict": "strong is better",
        "sample_ratio": {"state": "srm", "reason": "60 % of the units"},
    }

    for _ in range(3):
        experiment.result = enqueue_result_events(experiment=experiment, result=result, now=NOW)
    enqueue_result_events(experiment=experiment, result={"is_significant": False}, now=NOW)

    sent = OutboxMessage.objects.filter(event__in=["experiment.significant", "experiment.mismatch"])
    assert sorted(message.payload["reason"] for message in sent) == [
        "60 % of the units",
        "strong is better",
    ]


def test_a_refresh_needs_a_live_experiment() -> None:
    experiment = make_running()

    request_refresh(experiment=experiment, actor=ANNA, now=NOW)

    experiment.refresh_from_db()
    assert experiment.refresh_due_at == NOW
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)
    with pytest.raises(Conflict, match="is completed"):
        request_refresh(experiment=experiment, actor=ANNA, now=NOW)
