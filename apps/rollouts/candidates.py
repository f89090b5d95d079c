"""Starts a rollout when somebody names a candidate: the policy of a model's `candidate_plan`.

Level-triggered: what the alias names is compared with what it named when it was last looked at, so
that each move is acted on once, whoever made it and wherever. A move while there is no policy is
seen as well: a policy set later does not act on it. A refusal is told in the audit log and not
tried again; naming another version, or the same one after the alias was away, is a new move.
Where INTERLOCK_MLFLOW_LOGIN_REQUIRED holds, moves wait while MLflow takes them from anybody.
"""

from __future__ import annotations

import logging

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError, Invalid, Unavailable
from apps.models import mlflow
from apps.models.audit import record_audit
from apps.models.models import CANDIDATE, Alias, ModelVersion, RegisteredModel
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.services import start_rollout

log = logging.getLogger(__name__)

POLICY = Actor("interlock", "candidate")


def plan_names() -> list[str]:
    """Return the names that `candidate_plan` may have."""
    return list(Plan.objects.order_by("name").values_list("name", flat=True))


def check_plan_name(name: str) -> None:
    """Raise Invalid when `candidate_plan` names no plan."""
    if name and not Plan.objects.filter(name=name).exists():
        raise Invalid(f"candidate_plan: there is no plan named {name!r}.")


def start_candidates() -> int:
    """Look at every candidate that moved; return how many rollouts were started."""
    moved = Alias.objects.filter(name=CANDIDATE).exclude(
        model__candidate_seen__isnull=False, version=F("model__candidate_seen")
    )
    gone = RegisteredModel.objects.filter(candidate_seen__isnull=False).exclude(
        aliases__name=CANDIDATE
    )
    models = RegisteredModel.objects.filter(
        Q(pk__in=moved.values("model")) | Q(pk__in=gone.values("pk"))
    )
    found = list(models.values_list("pk", flat=True))
    if found and not _may_start():
        return 0
    return sum(_guarded(pk) for pk in found)


def _may_start() -> bool:
    """Say whether those who may set an alias in MLflow are known, where that is demanded."""
    if not settings.MLFLOW_LOGIN_REQUIRED:
        return True
    try:
        is_well = not mlflow.is_open()
        reason = "MLflow asks nobody for a login (INTERLOCK_MLFLOW_LOGIN_REQUIRED)"
    except Unavailable as error:
        is_well, reason = False, error.message
    if not is_well:
        log.warning("candidate.waiting %s", reason)
    return is_well


def _guarded(pk: int) -> bool:
    """Look at one model; a fault of one keeps no other one from its rollout."""
    try:
        return _look(pk)
    except Unavailable as error:
        log.info("candidate.waiting model=%d %s", pk, error.message)
    except Exception:
        log.exception("candidate.failed model=%d", pk)
    return False


@transaction.atomic
def _look(pk: int) -> bool:
    rows = RegisteredModel.objects.select_for_update(of=("self",), skip_locked=True)
    model = rows.filter(pk=pk).first()
    if model is None:
        # Another worker looks at it, or a rollout is being started: the next tick comes soon.
        return False
    alias = model.aliases.select_related("version__model").filter(name=CANDIDATE).first()
    candidate = alias.version if alias else None
    if candidate is not None and candidate.pk == model.candidate_seen_id:
        return False
    model.candidate_seen = candidate
    model.save(update_fields=["candidate_seen"])
    if candidate is None or not model.candidate_plan:
        return False
    return _start(model, candidate)


def _start(model: RegisteredModel, candidate: ModelVersion) -> bool:
    after = {"version": candidate.number, "plan": model.candidate_plan}
    try:
        rollout = _rollout(model, candidate)
    except Unavailable:
        raise
    except InterlockError as error:
        log.warning("candidate.refused %s: %s", candidate, error.message)
        _tell("candidate.refused", model, {**after, "reason": error.message})
        return False
    _tell("candidate.started", model, {**after, "rollout": str(rollout.pk)})
    return True


@transaction.atomic
def _rollout(model: RegisteredModel, candidate: ModelVersion) -> Rollout:
    plan = Plan.objects.filter(name=model.candidate_plan).first()
    if plan is None:
        raise Invalid(f"There is no plan named {model.candidate_plan!r} any more.")
    return start_rollout(model=model, target=candidate, plan=plan, actor=POLICY, now=database_now())


def _tell(action: str, model: RegisteredModel, after: dict[str, object]) -> None:
    record_audit(actor=POLICY, action=action, target=f"{model.name}@{CANDIDATE}", after=after)
