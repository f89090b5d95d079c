"""Starts a rollout when the alias `candidate` moves, by the model's `candidate_plan`.

Level-triggered: the version of the alias is compared with the version at the last run, so that
each move is handled once, wherever it was made. A move without a `candidate_plan` counts as
handled: a plan set later does not start it. A refused start is recorded in the audit log and not
retried; another version, or the same version after the alias was deleted, is a new move. With
INTERLOCK_MLFLOW_LOGIN_REQUIRED, moves wait while MLflow accepts changes without a login.
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
    """Return the valid values of `candidate_plan`."""
    return list(Plan.objects.order_by("name").values_list("name", flat=True))


def check_plan_name(name: str) -> None:
    """Raise Invalid when there is no plan with that name."""
    if name and not Plan.objects.filter(name=name).exists():
        raise Invalid(f"there is no plan named {name!r}.", field="candidate_plan")


def start_candidates() -> int:
    """Handle every candidate that moved; return the number of rollouts started."""
    moved = Alias.objects.filter(name=CANDIDATE).exclude(
        model__candidate_seen__isnull=False, version=F("model__candidate_seen")
    )
    removed = RegisteredModel.objects.filter(candidate_seen__isnull=False).exclude(
        aliases__name=CANDIDATE
    )
    models = RegisteredModel.objects.filter(
        Q(pk__in=moved.values("model")) | Q(pk__in=removed.values("pk"))
    )
    keys = list(models.values_list("pk", flat=True))
    if keys and not _may_start():
        return 0
    return sum(_handle_guarded(pk) for pk in keys)


def _may_start() -> bool:
    """Return whether MLflow authenticates who sets an alias, where that is required."""
    if not settings.MLFLOW_LOGIN_REQUIRED:
        return True
    try:
        is_protected = not mlflow.is_open()
        reason = "MLflow requires no login (INTERLOCK_MLFLOW_LOGIN_REQUIRED)"
    except Unavailable as error:
        is_protected, reason = False, error.message
    if not is_protected:
        log.warning("candidate.waiting %s", reason)
    return is_protected


def _handle_guarded(pk: int) -> bool:
    """Handle one model; an error of one model does not stop the others."""
    try:
        return _handle(pk)
    except Unavailable as error:
        log.info("candidate.waiting model=%d %s", pk, error.message)
    except Exception:
        log.exception("candidate.failed model=%d", pk)
    return False


@transaction.atomic
def _handle(pk: int) -> bool:
    rows = RegisteredModel.objects.select_for_update(of=("self",), skip_locked=True)
    model = rows.filter(pk=pk).first()
    if model is None:
        # Another worker holds the row, or a rollout is being started: the next tick retries.
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
        rollout = _start_rollout(model, candidate)
    except Unavailable:
        raise
    except InterlockError as error:
        log.warning("candidate.refused %s: %s", candidate, error.message)
        _record("candidate.refused", model, {**after, "reason": error.message})
        return False
    _record("candidate.started", model, {**after, "rollout": str(rollout.pk)})
    return True


@transaction.atomic
def _start_rollout(model: RegisteredModel, candidate: ModelVersion) -> Rollout:
    plan = Plan.objects.filter(name=model.candidate_plan).first()
    if plan is None:
        raise Invalid(f"There is no plan named {model.candidate_plan!r} any more.")
    return start_rollout(model=model, target=candidate, plan=plan, actor=POLICY, now=database_now())


def _record(action: str, model: RegisteredModel, after: dict[str, object]) -> None:
    record_audit(actor=POLICY, action=action, target=f"{model.name}@{CANDIDATE}", after=after)
