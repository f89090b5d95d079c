"""Shipping: an experiment ends, and a rollout of the winner's version begins, or neither does."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db import transaction

from apps.experiments.lifecycle import check_move, variants_of
from apps.experiments.models import Experiment, Variant
from apps.experiments.services import end_experiment
from apps.experiments.states import ExperimentState
from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.audit import record_audit
from apps.models.models import RegisteredModel
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.services import start_rollout


@transaction.atomic
def ship_experiment(
    *,
    experiment: Experiment,
    variant: str | None = None,
    plan: Plan | None = None,
    actor: Actor,
    now: datetime,
    reason: str = "",
    force: bool = False,
    overrides: Collection[str] = (),
    revision: int | None = None,
) -> Rollout:
    """End the experiment and start to make the winner's version stable, or `variant`'s.

    `force` ships what the result does not speak for, and needs a `reason`. `overrides` are the
    rollout's. Whatever the rollout refuses undoes the whole.

    Raises:
        Conflict: no winner, mismatched shares, a guardrail that is worse, not under way, changed
            meanwhile, or what `start_rollout` refuses.
        Invalid: no such variant, nothing to ship, or `force` without a reason.
    """
    # Rollouts lock their model before they publish; so does this, that no two wait crosswise.
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=experiment.model_id)
    _require_under_way(experiment, revision)
    doubts = why_not_ship(experiment.result, variant)
    if force and not reason.strip():
        raise Invalid("reason: shipping by force needs one; it is kept with the experiment")
    if doubts and not force:
        raise Conflict(f"{doubts[0]}; force it with a reason, to ship nevertheless", doubts=doubts)
    chosen = _chosen(experiment, variant)
    if chosen.version_id == model.stable_id:
        raise Invalid(f"{chosen.name} is {chosen.version}, which is stable: nothing to ship")
    told = _said(chosen, reason, doubts)
    end_experiment(
        experiment=experiment,
        conclusion=Experiment.Conclusion.SHIPPED,
        actor=actor,
        now=now,
        reason=told,
        revision=revision,
    )
    rollout = start_rollout(
        model=model,
        target=chosen.version,
        plan=plan,
        actor=actor,
        now=now,
        overrides=overrides,
    )
    experiment.rollout = rollout
    experiment.save(update_fields=["rollout"])
    record_audit(
        actor=actor,
        action="experiment.shipped",
        target=experiment.name,
        after={"variant": chosen.name, "rollout": str(rollout.pk), "despite": doubts},
    )
    return rollout


def _require_under_way(experiment: Experiment, revision: int | None) -> None:
    if experiment.state not in {ExperimentState.RUNNING, ExperimentState.PAUSED}:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a running or paused one is "
            "shipped. Promote the version instead",
            state=experiment.state,
        )
    check_move(experiment, ExperimentState.COMPLETED, revision)


def why_not_ship(result: dict[str, Any], variant: str | None = None) -> list[str]:
    """Return what in a result speaks against shipping its winner, or `variant`. Pure."""
    doubts = []
    ratio = result.get("sample_ratio") or {}
    if ratio.get("state") in {"srm", "unexpected-units"}:
        doubts.append(f"the shares of units do not match: {ratio.get('reason')}")
    winner = result.get("winner")
    if winner is None:
        doubts.append("there is no winner yet")
    elif variant is not None and variant != winner:
        doubts.append(f"the winner is {winner}, not {variant}")
    doubts += [
        f"guardrail {metric['name']} is worse with {comparison['arm']}"
        for metric in result.get("metrics", ())
        for comparison in metric.get("comparisons", ())
        if metric.get("role") == "guardrail"
        and comparison["arm"] == (variant or winner)
        and is_worse(comparison)
    ]
    return doubts


def is_worse(comparison: dict[str, Any]) -> bool:
    """Say whether a guardrail's comparison says that the arm is worse than is tolerable."""
    judged = comparison.get("non_inferiority") or {}
    return judged.get("state") == "worse"


def _chosen(experiment: Experiment, name: str | None) -> Variant:
    variants = {variant.name: variant for variant in variants_of(experiment)}
    wanted = name or experiment.result.get("winner")
    if wanted is None:
        raise Invalid("variant: there is no winner to ship; name the variant that is meant")
    if wanted not in variants:
        raise Invalid(f"variant: there is no {wanted}; there are: {', '.join(variants)}")
    return variants[wanted]


def _said(chosen: Variant, reason: str, doubts: list[str]) -> str:
    told = f"{chosen.name} ({chosen.version}) is shipped"
    if reason.strip():
        told += f": {reason.strip()}"
    return f"{told} (forced, although {'; '.join(doubts)})" if doubts else told
