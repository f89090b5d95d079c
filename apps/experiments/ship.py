"""Ship an experiment: end it and start a rollout of the winner's version, or do neither."""

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
    """End the experiment and start a rollout of the winner's version, or of `variant`'s.

    `force` ships despite doubts about the result, and needs a `reason`. `overrides` are those of
    the rollout. If the rollout is refused, the experiment continues.

    Raises:
        Conflict: no winner, sample ratio mismatch, a guardrail that is worse, not running or
            paused, outdated revision, or a refusal of `start_rollout`.
        Invalid: unknown variant, nothing to ship, or `force` without a reason.
    """
    # Rollouts lock their model before they publish. The same order here prevents deadlocks.
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=experiment.model_id)
    _require_live(experiment, revision)
    doubts = shipping_doubts(experiment.result, variant)
    if force and not reason.strip():
        raise Invalid("required with force; it is stored with the experiment", field="reason")
    if doubts and not force:
        raise Conflict(f"{doubts[0]}; to ship anyway, use force with a reason", doubts=doubts)
    chosen = _find_variant(experiment, variant)
    if chosen.version_id == model.stable_id:
        raise Invalid(f"{chosen.name} is {chosen.version}, which is stable already")
    end_experiment(
        experiment=experiment,
        conclusion=Experiment.Conclusion.SHIPPED,
        actor=actor,
        now=now,
        reason=_format_reason(chosen, reason, doubts),
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


def _require_live(experiment: Experiment, revision: int | None) -> None:
    if experiment.state not in {ExperimentState.RUNNING, ExperimentState.PAUSED}:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a running or paused one can "
            "be shipped. Promote the version instead",
            state=experiment.state,
        )
    check_move(experiment, ExperimentState.COMPLETED, revision)


def shipping_doubts(result: dict[str, Any], variant: str | None = None) -> list[str]:
    """Return the reasons in a result against shipping its winner, or `variant`. Pure."""
    doubts = []
    ratio = result.get("sample_ratio") or {}
    if ratio.get("state") in {"srm", "unexpected-units"}:
        doubts.append(f"sample ratio mismatch: {ratio.get('reason')}")
    winner = result.get("winner")
    if winner is None:
        doubts.append("there is no winner yet")
    elif variant is not None and variant != winner:
        doubts.append(f"the winner is {winner}, not {variant}")
    doubts += [
        f"guardrail {metric['name']} is worse in {comparison['arm']}"
        for metric in result.get("metrics", ())
        for comparison in metric.get("comparisons", ())
        if metric.get("role") == "guardrail"
        and comparison["arm"] == (variant or winner)
        and is_worse(comparison)
    ]
    return doubts


def is_worse(comparison: dict[str, Any]) -> bool:
    """Return whether the arm of a guardrail's comparison is worse than the margin allows."""
    non_inferiority = comparison.get("non_inferiority") or {}
    return non_inferiority.get("state") == "worse"


def _find_variant(experiment: Experiment, name: str | None) -> Variant:
    """Return the variant of that name, or the winner. Raises Invalid."""
    variants = {variant.name: variant for variant in variants_of(experiment)}
    name = name or experiment.result.get("winner")
    if name is None:
        raise Invalid("there is no winner; name the variant to ship", field="variant")
    if name not in variants:
        known = ", ".join(variants)
        raise Invalid(f"unknown variant {name!r}; expected one of {known}", field="variant")
    return variants[name]


def _format_reason(chosen: Variant, reason: str, doubts: list[str]) -> str:
    message = f"{chosen.name} ({chosen.version}) is shipped"
    if reason.strip():
        message += f": {reason.strip()}"
    return f"{message} (forced, although {'; '.join(doubts)})" if doubts else message
