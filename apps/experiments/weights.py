"""Changes the weights of a running experiment, and records the change for the analysis.

In the analysis a unit keeps the variant of its first exposure, whatever variant its bucket gets
later.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django.db import transaction

from apps.experiments.draft_checks import check_weights
from apps.experiments.lifecycle import (
    append_event,
    check_revision,
    enqueue_event,
    split_document,
    variants_of,
)
from apps.experiments.models import Experiment, WeightChange
from apps.experiments.snapshots import keep_result
from apps.experiments.states import ExperimentState
from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.transitions import compare_and_set
from apps.models.audit import record_audit
from apps.models.services import route_split
from apps.rollouts.publication import publish_table

REWEIGHABLE = {ExperimentState.RUNNING, ExperimentState.PAUSED}


@transaction.atomic
def change_weights(
    *,
    experiment: Experiment,
    weights_bp: Mapping[str, int],
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """Set the weight of every variant, from the next routing table on.

    For a paused experiment the weights take effect when it is resumed.

    Raises:
        Conflict: the experiment is neither running nor paused, or was changed meanwhile.
        Invalid: a variant is missing or unknown, or the weights do not sum to 10,000.
    """
    if experiment.state not in REWEIGHABLE:
        raise Conflict(
            f"experiment '{experiment.name}' is {experiment.state}; weights can be changed only "
            "while it is running or paused. To change a draft, edit it",
            state=experiment.state,
        )
    check_revision(experiment, revision)
    variants = variants_of(experiment)
    before = {variant.name: variant.weight_bp for variant in variants}
    weights = _ordered_weights(weights_bp, before)
    check_weights(weights, next(variant.name for variant in variants if variant.is_control))
    if weights == before:
        raise Invalid("the weights are unchanged", field="weights_bp")
    keep_result(experiment, "before a change of weights", actor, now)
    for variant in variants:
        variant.weight_bp = weights[variant.name]
        variant.save(update_fields=["weight_bp"])
    if experiment.state == ExperimentState.RUNNING:
        route_split(owner_id=experiment.pk, document=split_document(experiment, variants))
    generation = publish_table(
        reason=f"weights of experiment {experiment.name} changed", actor=actor, now=now
    )
    text = reason or f"weights are {_format_weights(weights)}"
    compare_and_set(experiment, state_field="state", reason=text, generation=generation)
    WeightChange.objects.create(
        experiment=experiment, at=now, weights_bp=weights, reason=text, actor=actor.name
    )
    evidence = {"before": before, "after": weights}
    append_event(experiment, experiment.state, text, actor, now, evidence)
    record_audit(
        actor=actor,
        action="experiment.weights",
        target=experiment.name,
        before={"weights_bp": before},
        after={"weights_bp": weights, "reason": text},
    )
    enqueue_event(experiment, "experiment.weights", actor, now)


def _ordered_weights(weights_bp: Mapping[str, int], known: Mapping[str, int]) -> dict[str, int]:
    """Return the weights in the variants' order. Raises Invalid if one is missing or unknown."""
    for name in weights_bp:
        if name not in known:
            raise Invalid(
                f"unknown variant '{name}'; expected {', '.join(known)}", field="weights_bp"
            )
    for name in known:
        if name not in weights_bp:
            raise Invalid(
                f"variant '{name}' is missing; set all weights, a treatment may get 0",
                field="weights_bp",
            )
    return {name: weights_bp[name] for name in known}


def _format_weights(weights_bp: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {weight / 100:g} %" for name, weight in weights_bp.items())
