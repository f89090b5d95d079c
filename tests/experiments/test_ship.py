"""Shipping: an experiment ends and a rollout of its winner starts, or neither happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from apps.experiments.models import Experiment
from apps.experiments.services import stop_experiment
from apps.experiments.ship import ship_experiment
from apps.experiments.states import ExperimentState
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry, LiveSplit, ModelVersion
from apps.rollouts.models import Quarantine, Rollout
from tests.experiments.factories import ANNA, NOW, make_running
from tests.rollouts.factories import make_plan

pytestmark = pytest.mark.django_db
WON = {"winner": "strong", "is_significant": True, "verdict": "strong is better", "metrics": []}
GUARDRAIL = {
    "name": "latency",
    "role": "guardrail",
    "comparisons": [{"arm": "strong", "non_inferiority": {"state": "worse"}}],
}
Result = dict[str, Any]


@pytest.fixture
def running() -> Callable[[Result], Experiment]:
    """Return a factory of a running experiment with a result, and of a default plan."""

    def make(result: Result) -> Experiment:
        make_plan()
        experiment = make_running()
        experiment.result = result
        experiment.save()
        return experiment

    return make


def ship(experiment: Experiment, **fields: Any) -> Rollout:
    return ship_experiment(experiment=experiment, actor=ANNA, now=NOW, **fields)


def test_the_winner_becomes_a_rollout(running: Callable[[Result], Experiment]) -> None:
    experiment = running(WON)

    rollout = ship(experiment, reason="it won")

    experiment.refresh_from_db()
    assert (experiment.state, experiment.conclusion) == ("completed", "shipped")
    assert experiment.rollout == rollout
    assert (rollout.target.number, rollout.is_live) == (2, True)
    assert LiveSplit.objects.get().owner_id == rollout.pk
    assert experiment.snapshots.get().result == WON
    assert AuditEntry.objects.get(action="experiment.shipped").after["variant"] == "strong"


@pytest.mark.parametrize(
    ("result", "fields", "message"),
    [
        ({}, {}, "there is no winner yet"),
        (WON | {"winner": None}, {"variant": "strong"}, "there is no winner yet"),
        (WON, {"variant": "weak"}, "the winner is strong, not weak"),
        (WON | {"metrics": [GUARDRAIL]}, {}, "guardrail latency is worse in strong"),
        (
            WON | {"sample_ratio": {"state": "srm", "reason": "60 %"}},
            {},
            "sample ratio mismatch: 60 %",
        ),
    ],
)
def test_it_refuses_a_variant_with_doubts(
    running: Callable[[Result], Experiment], result: Result, fields: dict[str, Any], message: str
) -> None:
    experiment = running(result)

    with pytest.raises(Conflict, match=message):
        ship(experiment, **fields)

    experiment.refresh_from_db()
    assert experiment.state == ExperimentState.RUNNING
    assert not Rollout.objects.exists()


def test_a_forced_shipment_records_reason_and_doubts(
    running: Callable[[Result], Experiment],
) -> None:
    experiment = running({})

    with pytest.raises(Invalid, match="required with force"):
        ship(experiment, variant="strong", force=True)
    ship(experiment, variant="strong", force=True, reason="the old one is a risk")

    experiment.refresh_from_db()
    assert "the old one is a risk" in experiment.reason
    assert "although there is no winner yet" in experiment.reason


@pytest.mark.parametrize(
    ("variant", "message"),
    [("weak", "stable already"), ("other", "unknown variant 'other'"), (None, "no winner")],
)
def test_force_does_not_ship_an_invalid_variant(
    running: Callable[[Result], Experiment], variant: str | None, message: str
) -> None:
    experiment = running({})

    with pytest.raises(Invalid, match=message):
        ship(experiment, variant=variant, force=True, reason="because")


def test_a_refused_rollout_leaves_the_experiment_running(
    running: Callable[[Result], Experiment],
) -> None:
    experiment = running(WON)
    version = ModelVersion.objects.get(number=2)
    Quarantine.objects.create(version=version, reason="it crashed", at=NOW)

    with pytest.raises(Conflict, match="in quarantine"):
        ship(experiment)

    stored = Experiment.objects.get(pk=experiment.pk)
    assert (stored.state, stored.rollout, stored.conclusion) == ("running", None, "")
    assert LiveSplit.objects.get().owner_id == experiment.pk
    assert not stored.snapshots.exists()
    assert ship(stored, overrides=["quarantine"]).is_live


def test_an_ended_or_changed_experiment_is_not_shipped(
    running: Callable[[Result], Experiment],
) -> None:
    experiment = running(WON)
    same = Experiment.objects.get(pk=experiment.pk)
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)

    with pytest.raises(Conflict, match="is completed"):
        ship(experiment)
    with pytest.raises(Conflict, match="meanwhile"):
        ship(same)
    assert not Rollout.objects.exists()
