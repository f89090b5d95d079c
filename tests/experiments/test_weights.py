"""Changes of weights: validation, the routing table, and the analysis."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.experiments.models import Experiment
from apps.experiments.services import pause_experiment, resume_experiment, stop_experiment
from apps.experiments.weights import change_weights
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry
from apps.rollouts.models import PublishedTable
from contract.routing import ExperimentSplit, decode
from tests.experiments.factories import ANNA, NOW, make_draft, make_running

pytestmark = pytest.mark.django_db
LATER = NOW + timedelta(hours=1)
CAREFUL = {"weak": 9_000, "strong": 1_000}


def routed() -> dict[str, int] | None:
    table = PublishedTable.objects.order_by("-generation")[0]
    split = decode(bytes(table.document)).models["digits"].split
    if split is None:
        return None
    assert isinstance(split, ExperimentSplit)
    return {variant.name: variant.weight_bp for variant in split.variants}


def test_a_change_takes_effect_in_the_next_table_and_is_recorded() -> None:
    experiment = make_running()

    change_weights(
        experiment=experiment, weights_bp=CAREFUL, actor=ANNA, now=LATER, reason="careful"
    )

    assert routed() == CAREFUL
    assert {v.name: v.weight_bp for v in experiment.variants.all()} == CAREFUL
    first, second = experiment.weights.all()
    assert (first.weights_bp, second.weights_bp) == ({"weak": 5_000, "strong": 5_000}, CAREFUL)
    assert (second.at, second.reason, second.actor) == (LATER, "careful", "anna")
    event = experiment.events.last()
    assert event is not None
    assert (event.from_state, event.to_state) == ("running", "running")
    assert AuditEntry.objects.get(action="experiment.weights").after["weights_bp"] == CAREFUL


def test_weights_of_a_paused_experiment_take_effect_when_it_is_resumed() -> None:
    experiment = make_running()
    pause_experiment(experiment=experiment, actor=ANNA, now=NOW)

    change_weights(experiment=experiment, weights_bp=CAREFUL, actor=ANNA, now=LATER)

    assert routed() is None
    resume_experiment(experiment=experiment, actor=ANNA, now=LATER)
    assert routed() == CAREFUL


def test_a_treatment_may_get_weight_0() -> None:
    experiment = make_running()

    change_weights(
        experiment=experiment, weights_bp={"weak": 10_000, "strong": 0}, actor=ANNA, now=LATER
    )

    assert routed() == {"weak": 10_000, "strong": 0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weak": 5_000}, "variant 'strong' is missing"),
        ({"weak": 5_000, "strong": 4_000}, "weights sum to 9000"),
        ({"weak": 0, "strong": 10_000}, "control variant weak needs a weight above 0"),
        ({"weak": 5_000, "strong": 5_000, "new": 0}, "unknown variant 'new'"),
        ({"weak": 10_001, "strong": -1}, "weight_bp is 10001"),
        ({"weak": 5_000, "strong": 5_000}, "weights are unchanged"),
    ],
)
def test_invalid_weights_are_rejected(weights: dict[str, int], message: str) -> None:
    experiment = make_running()

    with pytest.raises(Invalid, match=message):
        change_weights(experiment=experiment, weights_bp=weights, actor=ANNA, now=LATER)

    assert routed() == {"weak": 5_000, "strong": 5_000}
    assert experiment.weights.count() == 1


def test_weights_of_a_draft_cannot_be_changed() -> None:
    draft = make_draft()

    with pytest.raises(Conflict, match="is draft"):
        change_weights(experiment=draft, weights_bp=CAREFUL, actor=ANNA, now=LATER)


def test_of_two_concurrent_changes_the_second_is_rejected() -> None:
    experiment = make_running()
    same = Experiment.objects.get(pk=experiment.pk)
    change_weights(experiment=experiment, weights_bp=CAREFUL, actor=ANNA, now=LATER)

    with pytest.raises(Conflict, match="meanwhile"):
        change_weights(
            experiment=same, weights_bp={"weak": 1, "strong": 9_999}, actor=ANNA, now=LATER
        )
    with pytest.raises(Conflict, match="meanwhile"):
        stop_experiment(experiment=same, actor=ANNA, now=LATER)
    assert routed() == CAREFUL


def test_the_result_before_is_kept() -> None:
    experiment = make_running()
    experiment.result = {"verdict": "so far"}
    experiment.save()

    change_weights(experiment=experiment, weights_bp=CAREFUL, actor=ANNA, now=LATER)

    assert experiment.snapshots.get().result == {"verdict": "so far"}
