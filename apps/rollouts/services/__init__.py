"""Public writes on rollouts. Each is one transaction; a refusal says why and changes nothing.

`revision` is what the caller last saw: a stale one is a Conflict, so that nobody acts on a page
that has moved on. `None` acts on whatever is there. An abort takes none: it is never stale.
"""

from apps.rollouts.gates import gate_role
from apps.rollouts.services.aborts import abort_rollout, can_take_back, give_reason
from apps.rollouts.services.actions import (
    approve_step,
    override_freeze,
    pause_rollout,
    promote_now,
    resume_rollout,
    skip_step,
)
from apps.rollouts.services.starts import (
    default_plan,
    earlier_versions,
    retry_rollout,
    rollback_model,
    start_rollout,
)

__all__ = [
    "abort_rollout",
    "approve_step",
    "can_take_back",
    "default_plan",
    "earlier_versions",
    "gate_role",
    "give_reason",
    "override_freeze",
    "pause_rollout",
    "promote_now",
    "resume_rollout",
    "retry_rollout",
    "rollback_model",
    "skip_step",
    "start_rollout",
]
