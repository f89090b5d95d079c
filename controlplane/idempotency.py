"""`Idempotency-Key`: a repeated POST to the API gets the first one's answer and acts once.

The key is claimed before the request acts and the answer is kept after it did. A process that dies
in between leaves a claim without an answer; it lapses, and the rules of the rows themselves (one
live rollout, unique names) then keep the repetition from doing harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from controlplane.authentication import TokenAuthentication
from controlplane.models import IdempotencyRecord

PREFIX = "/api/v1/"
MULTIPART = "multipart/form-data"
KEY_LENGTH_MAX = 200
KEPT = timedelta(days=1)
CLAIM_LAPSES = timedelta(seconds=60)
SHOWN_ONCE = "This was done already, and its answer held a secret that is shown once only."


class IdempotencyMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        key = request.headers.get("Idempotency-Key", "")
        if request.method != "POST" or not key or not request.path.startswith(PREFIX):
            return self.get_response(request)
        caller = _caller(request)
        if not caller:
            # Of strangers nothing is kept, and to strangers nothing is told: the view refuses.
            return self.get_response(request)
        if len(key) > KEY_LENGTH_MAX:
            return _refuse(400, f"An Idempotency-Key has at most {KEY_LENGTH_MAX} characters.")
        digest = _digest(request)
        record, claimed = _claim(caller, key, digest, timezone.now())
        if not claimed:
            return _repeat(record, digest)
        return _keep(record, self.get_response(request))


def _digest(request: HttpRequest) -> str:
    text = f"{request.method} {request.get_full_path()}\n".encode()
    if request.content_type == MULTIPART:
        # An upload is streamed to disk once its sender is known: here only its length is.
        return hashlib.sha256(text + request.headers.get("Content-Length", "").encode()).hexdigest()
    return hashlib.sha256(text + request.body).hexdigest()


def _caller(request: HttpRequest) -> str:
    """Return who asks, once that is proven, as the API does it; empty for a stranger.

    A stored answer belongs to a user. A token that was deleted or has expired proves nobody, so it
    gets no answer that was kept for it.
    """
    if request.headers.get("Authorization"):
        try:
            proven = TokenAuthentication().authenticate(Request(request))
        except AuthenticationFailed:
            return ""
        user: Any = proven[0] if proven else None
    else:
        user = request.user
    return f"user:{user.pk}" if user is not None and user.is_active else ""


def _claim(caller: str, key: str, digest: str, now: datetime) -> tuple[IdempotencyRecord, bool]:
    """Return the record of this caller's key, and whether this request is the first to use it."""
    IdempotencyRecord.objects.filter(at__lt=now - KEPT).delete()
    lapsed = IdempotencyRecord.objects.filter(
        caller=caller, key=key, status=None, at__lt=now - CLAIM_LAPSES
    )
    lapsed.delete()
    try:
        with transaction.atomic():
            record = IdempotencyRecord.objects.create(
                caller=caller, key=key, request_digest=digest, at=now
            )
        return record, True
    except IntegrityError:
        return IdempotencyRecord.objects.get(caller=caller, key=key), False


def _repeat(record: IdempotencyRecord, digest: str) -> HttpResponse:
    if record.request_digest != digest:
        return _refuse(422, "This Idempotency-Key was used for another request.")
    if record.status is None:
        return _refuse(409, "The first request with this Idempotency-Key is still being answered.")
    return HttpResponse(
        bytes(record.body or b""),
        status=record.status,
        content_type="application/json",
        headers={"Idempotency-Replayed": "true"},
    )


def _keep(record: IdempotencyRecord, response: HttpResponseBase) -> HttpResponseBase:
    """Keep a final answer. A fault of ours or a refused login is none: it can be retried.

    Of an answer that nobody may store, such as a new API key, only that it was given is kept.
    """
    if not isinstance(response, HttpResponse) or response.status_code in {401, 403, 429} | set(
        range(500, 600)
    ):
        record.delete()
        return response
    kept = _refuse(409, SHOWN_ONCE) if _is_secret(response) else response
    # By query: the claim of a request that took long may have lapsed, and be another's.
    IdempotencyRecord.objects.filter(pk=record.pk).update(
        status=kept.status_code, body=kept.content
    )
    return response


def _is_secret(response: HttpResponse) -> bool:
    return "no-store" in response.headers.get("Cache-Control", "")


def _refuse(status: int, message: str) -> JsonResponse:
    body = {"error": {"code": "idempotency", "message": message, "detail": {}}}
    return JsonResponse(body, status=status)
