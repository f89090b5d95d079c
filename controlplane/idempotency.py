"""`Idempotency-Key`: a repeated POST to the API has one effect and returns the first response.

The key is claimed before the request runs, and the response is stored afterwards. A process that
dies in between leaves a claim without a response. The claim lapses, and constraints of the rows
(one live rollout, unique names) then prevent a second effect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import RequestDataTooBig
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
SHOWN_ONCE = "The first request succeeded; its response held a secret that is shown only once."


class IdempotencyMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        key = request.headers.get("Idempotency-Key", "")
        if request.method != "POST" or not key or not request.path.startswith(PREFIX):
            return self.get_response(request)
        caller = _caller(request)
        if not caller:
            # Nothing is stored for or sent to unauthenticated clients: the view refuses them.
            return self.get_response(request)
        if len(key) > KEY_LENGTH_MAX:
            return _refuse(400, f"An Idempotency-Key may have at most {KEY_LENGTH_MAX} characters.")
        try:
            digest = _digest(request)
        except RequestDataTooBig:
            return _refuse(413, "The request body is too large for an Idempotency-Key.")
        record, is_first = _claim(caller, key, digest, timezone.now())
        if not is_first:
            return _replay(record, digest)
        return _store(record, self.get_response(request))


def _digest(request: HttpRequest) -> str:
    text = f"{request.method} {request.get_full_path()}\n".encode()
    if request.content_type == MULTIPART:
        # An upload is streamed to disk after authentication; here only its length is known.
        return hashlib.sha256(text + request.headers.get("Content-Length", "").encode()).hexdigest()
    return hashlib.sha256(text + request.body).hexdigest()


def _caller(request: HttpRequest) -> str:
    """Return the authenticated user as `user:ID`, or "" for an unauthenticated client.

    A stored response belongs to a user: with a deleted or expired token nobody can read it.
    """
    if request.headers.get("Authorization"):
        try:
            login = TokenAuthentication().authenticate(Request(request))
        except AuthenticationFailed:
            return ""
        user: Any = login[0] if login else None
    else:
        user = request.user
    return f"user:{user.pk}" if user is not None and user.is_active else ""


def _claim(caller: str, key: str, digest: str, now: datetime) -> tuple[IdempotencyRecord, bool]:
    """Return the record of this caller's key and whether this request is the first with it."""
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


def _replay(record: IdempotencyRecord, digest: str) -> HttpResponse:
    if record.request_digest != digest:
        return _refuse(422, "The Idempotency-Key was used for a different request.")
    if record.status is None:
        return _refuse(409, "The first request with this Idempotency-Key is still running.")
    return HttpResponse(
        bytes(record.body or b""),
        status=record.status,
        content_type="application/json",
        headers={"Idempotency-Replayed": "true"},
    )


def _store(record: IdempotencyRecord, response: HttpResponseBase) -> HttpResponseBase:
    """Store a final response. Server errors and refused logins are not final: they can be retried.

    A response with a secret, such as a new API key, is not stored; a replay gets a 409 instead.
    """
    if not isinstance(response, HttpResponse) or response.status_code in {401, 403, 429} | set(
        range(500, 600)
    ):
        record.delete()
        return response
    stored = _refuse(409, SHOWN_ONCE) if _is_secret(response) else response
    # A query, not save(): the claim of a slow request may have lapsed and been deleted.
    IdempotencyRecord.objects.filter(pk=record.pk).update(
        status=stored.status_code, body=stored.content
    )
    return response


def _is_secret(response: HttpResponse) -> bool:
    return "no-store" in response.headers.get("Cache-Control", "")


def _refuse(status: int, message: str) -> JsonResponse:
    body = {"error": {"code": "idempotency", "message": message, "detail": {}}}
    return JsonResponse(body, status=status)
