"""A turn of delivery: every target that has something due gets a lane of its own.

A lane sends one message after another and stops when its endpoint does not answer, so that a slow
endpoint delays nobody else. One turn runs at a time over all workers: endpoints that hang hold up
one worker slot and never those in which rollouts tick.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from django.db import connections

from apps.lib.clock import database_now
from apps.models.internal_hosts import egress_policy
from apps.models.locks import take_turn
from apps.notifications import outbox
from apps.notifications.models import OutboxMessage
from apps.notifications.senders import Outcome, send
from apps.notifications.services import deactivate_gone

log = logging.getLogger(__name__)

LANES_MAX = 8
ERROR_MAX = 500
# A lane claims nothing after so long, so that the next turn may look at the others.
TURN_S = 5.0
# Any number that no other advisory lock of ours has.
LOCK = 7_206_518


def deliver_due() -> int:
    """Send what is due, and return how many messages were tried. Nought while another turn runs."""
    with take_turn(LOCK) as alone:
        targets = outbox.due_targets(database_now()) if alone else []
        if not targets:
            return 0
        until = monotonic() + TURN_S
        with ThreadPoolExecutor(LANES_MAX, thread_name_prefix="notify") as lanes:
            return sum(lanes.map(lambda target: run_lane(target, until), targets))


def run_lane(target_id: int, until: float) -> int:
    """Send one target's due messages in their order, in a thread of its own."""
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
        # What is not settled is due again when its lease lapses; the other lanes go on.
        log.exception("notification.lane_failed target=%d", target_id)
    finally:
        connections.close_all()
    return tried


def _attempt(message: OutboxMessage) -> bool:
    """Send and settle one message; say whether the lane may go on."""
    # The lease is committed and no transaction is open: an endpoint that hangs holds no lock.
    outcome = _sent(message)
    now = database_now()
    if not outcome.error:
        outbox.settle_delivered(message, now)
        return True
    log.info("notification.failed %s attempt=%d: %s", message.pk, message.attempts, outcome.error)
    outbox.settle_failed(message, outcome.error, now, outcome.retry_after_s)
    return _goes_on(message, outcome)


def _sent(message: OutboxMessage) -> Outcome:
    try:
        return send(message, database_now(), egress_policy())
    except Exception as error:
        # It fails alone, and its page says why: those behind it are sent.
        log.exception("notification.not_sent %s", message.pk)
        return Outcome(error=f"it cannot be sent: {type(error).__name__}: {error}"[:ERROR_MAX])


def _goes_on(message: OutboxMessage, outcome: Outcome) -> bool:
    now = database_now()
    if outcome.is_gone:
        deactivate_gone(target=message.target, now=now)
        return False
    if outcome.is_away:
        outbox.postpone(message, now)
    return not outcome.is_away
