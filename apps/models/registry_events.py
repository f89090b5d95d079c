"""Hints that MLflow's registry has changed: a webhook, or an alias set here.

A hint only makes the next sync run sooner; a lost hint costs one poll interval.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import time

import redis
from django.conf import settings

from apps.lib import redis_client
from apps.lib.errors import Forbidden, NotFound, Unavailable

log = logging.getLogger(__name__)

SYNC_TASK = "models.sync_registry"
# A sync starts this long after the first hint and covers all hints in between.
DELAY_S = 1.0
DEBOUNCE_KEY = "interlock:registry-hint"
# An older webhook is treated as a replay; MLflow's own retries take about a minute.
AGE_MAX_S = 300
VERSION = "v1"
# Events of prompts and budgets are irrelevant here.
ENTITIES = frozenset(
    {"registered_model", "model_version", "model_version_tag", "model_version_alias"}
)


def check_webhook(
    *, signature: str, delivery_id: str, timestamp: str, body: bytes, now_s: float | None = None
) -> None:
    """Verify the signature and the time of a webhook.

    The signature is `v1,` and base64 of HMAC-SHA256 over `delivery_id.timestamp.body`.

    Raises:
        NotFound: webhooks are off, because no secret is set.
        Forbidden: the signature or the time is wrong.
    """
    secret = settings.MLFLOW_WEBHOOK_SECRET
    if not secret:
        raise NotFound("Webhooks are off: INTERLOCK_MLFLOW_WEBHOOK_SECRET is not set.")
    signed = b".".join((delivery_id.encode(), timestamp.encode(), body))
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    expected = f"{VERSION},{base64.b64encode(digest).decode()}"
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise Forbidden("X-MLflow-Signature does not match the body and the shared secret.")
    age_s = (time.time() if now_s is None else now_s) - int(timestamp)
    if abs(age_s) > AGE_MAX_S:
        raise Forbidden(
            f"X-MLflow-Timestamp differs from the server's clock by {abs(age_s):.0f} s; the "
            f"maximum is {AGE_MAX_S} s."
        )


def queue_sync() -> bool:
    """Queue one sync for all hints of the next second; return False if one is queued already.

    Raises:
        Unavailable: Redis does not respond.
    """
    # Imported here: web and ingester start without Celery, and rarely need it.
    from kombu.exceptions import OperationalError

    from controlplane.celery import app

    try:
        with redis_client.connect(timeout_s=0.5) as client:
            if not client.set(DEBOUNCE_KEY, "1", nx=True, px=int(DELAY_S * 1_000)):
                return False
        app.send_task(SYNC_TASK, countdown=DELAY_S, expires=60.0, retry=False)
    except (redis.RedisError, OperationalError) as error:
        raise Unavailable(f"The hint could not be queued: {error}") from error
    return True


def hint_sync() -> None:
    """Queue a sync; an error is only logged."""
    try:
        queue_sync()
    except Unavailable as error:
        log.info("registry.hint_lost %s", error.message)
