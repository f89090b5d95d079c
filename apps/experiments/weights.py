"""Changing the weights of an experiment under way; the analysis knows, as the change is recorded.

Units keep the variant that they met first in the analysis, whatever their bucket belongs to later.
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
    """Give every variant the weight named for it, from the next table on.

    Of a paused one they hold when it is resumed.

    Raises:
        Conflict: it is neither running nor paused, or was changed meanwhile.
        Invalid: a variant is missing or unknown, or the weights do not sum to 10,000.
    """
    if experiment.state not in REWEIGHABLE:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; weights change while it is "
            "running or paused, those of a draft by editing it",
            state=experiment.state,
        )
    check_revision(experiment, revision)
    variants = variants_of(experiment)
    before = {variant.name: variant.weight_bp for variant in variants}
    weights = _read(weights_bp, before)
    check_weights(weights, next(variant.name for variant in variants if variant.is_control))
    if weights == before:
        raise Invalid("weights_bp: these are the weights already; nothing would change")
    keep_result(experiment, "as it stood when weights were changed", actor, now)
    for variant in variants:
        variant.weight_bp = weights[variant.name]
        variant.save(update_fields=["weight_bp"])
    if experiment.state == ExperimentState.RUNNING:
        route_split(owner_id=experiment.pk, document=split_document(experiment, variants))
    generation = publish_table(
        reason=f"weights of experiment {experiment.name} changed", actor=actor, now=now
    )
    told = reason or f"weights are {_say(weights)}"
    compare_and_set(experiment, state_field="state", reason=told, generation=generation)
    WeightChange.objects.create(
        experiment=experiment, at=now, weights_bp=weights, reason=told, actor=actor.name
    )
    evidence = {"before": before, "after": weights}
    append_event(experiment, experiment.state, told, actor, now, evidence)
    record_audit(
        actor=actor,
        action="experiment.weights",
        target=experiment.name,
        before={"weights_bp": before},
        after={"weights_bp": weights, "reason": told},
    )
    enqueue_event(experiment, "experiment.weights", actor, now)


def _read(weights_bp: Mapping[str, int], known: Mapping[str, int]) -> dict[str, int]:
    """Return the weights in the variants' order. Raises Invalid unless each has one."""
    for name in weights_bp:
        if name not in known:
            raise Invalid(f"weights_bp: there is no variant {name}; there are: {', '.join(known)}")
    for name in known:
        if name not in weights_bp:
            raise Invalid(f"weights_bp: variant {name} has none; name all, a treatment may get 0")
    return {name: weights_bp[name] for name in known}


def _say(weights_bp: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {weight / 100:g} %" for name, weight in weights_bp.items())
