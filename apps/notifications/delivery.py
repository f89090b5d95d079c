"""Delivers due messages: each target with due messages gets a lane, which is a thread.

A lane sends one message after another and stops when its endpoint does not answer, so a slow
endpoint delays its own messages only. One run at a time over all workers: endpoints that hang
occupy one worker slot and never block the ticks of rollouts.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from django.db import connections

from apps.lib.clock import database_now
from apps.models.internal_hosts import egress_policy
from apps.models.locks import try_lock
from apps.notifications import outbox
from apps.notifications.models import OutboxMessage
from apps.notifications.senders import Outcome, send
from apps.notifications.services import deactivate_gone

log = logging.getLogger(__name__)

LANES_MAX = 8
ERROR_MAX = 500
# A lane claims no message after this time, so that the next run can serve other targets.
RUN_S = 5.0
# The key of the advisory lock; each lock of Interlock has its own.
LOCK = 7_206_518


def deliver_due() -> int:
    """Send due messages; return the number of attempts, 0 while another run is active."""
    with try_lock(LOCK) as is_locked:
        targets = outbox.due_targets(database_now()) if is_locked else []
        if not targets:
            return 0
        until = monotonic() + RUN_S
        with ThreadPoolExecutor(LANES_MAX, thread_name_prefix="notify") as lanes:
            return sum(lanes.map(lambda target: run_lane(target, until), targets))


def run_lane(target_id: int, until: float) -> int:
    """Send the due messages of one target in order, in its own thread; return the attempts."""
    tried = 0
    try:
        while monotonic() < until:
            message = outbox.claim(target_id, database_now())
            if message is None:
                break
            tried += 1
            if not _attempt(message):
                break
    except Exception:
        # An unsettled message is due again when its lease expires; the other lanes go on.
        log.exception("notification.lane_failed target=%d", target_id)
    finally:
        connections.close_all()
    return tried


def _attempt(message: OutboxMessage) -> bool:
    """Send and settle one message; return whether the lane may go on."""
    # The lease is committed and no transaction is open, so a hanging endpoint holds no lock.
    outcome = _send(message)
    now = database_now()
    if not outcome.error:
        outbox.settle_delivered(message, now)
        return True
    log.info("notification.failed %s attempt=%d: %s", message.pk, message.attempts, outcome.error)
    outbox.settle_failed(message, outcome.error, now, outcome.retry_after_s)
    return _may_continue(message, outcome)


def _send(message: OutboxMessage) -> Outcome:
    try:
        return send(message, database_now(), egress_policy())
    except Exception as error:
        # The failure is recorded for this message; the messages behind it are sent.
        log.exception("notification.not_sent %s", message.pk)
        return Outcome(error=f"it cannot be sent: {type(error).__name__}: {error}"[:ERROR_MAX])


def _may_continue(message: OutboxMessage, outcome: Outcome) -> bool:
    now = database_now()
    if outcome.is_gone:
        deactivate_gone(target=message.target, now=now)
        return False
    if outcome.is_away:
        outbox.postpone(message, now)
    return not outcome.is_away
