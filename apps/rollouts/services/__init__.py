"""Public writes on rollouts. Each is one transaction; a refused one changes nothing.

`revision` is the revision that the caller last read: a stale one raises Conflict, so that nobody
acts on an outdated page. `None` skips the check. An abort has no revision: it is always allowed.
"""

from apps.rollouts.gates import gate_role
from apps.rollouts.services.aborts import abort_rollout, can_roll_back, record_abort_reason
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
    "can_roll_back",
    "default_plan",
    "earlier_versions",
    "gate_role",
    "override_freeze",
    "pause_rollout",
    "promote_now",
    "record_abort_reason",
    "resume_rollout",
    "retry_rollout",
    "rollback_model",
    "skip_step",
    "start_rollout",
]
