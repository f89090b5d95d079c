"""What data-plane instances call: pull the routing table, report what they serve from.

Plain Django views on bytes: the table is stored as it is sent, and kept by those who send it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from apps.lib.clock import database_now
from apps.rollouts.announcements import newest_tag
from apps.rollouts.documents import delta_to, document_of
from apps.rollouts.models import PublishedTable
from apps.rollouts.publication import record_report
from contract import deltas
from contract.messages import MessageError, decode_report

View = Callable[[HttpRequest], HttpResponse]
REPORT_BYTES_MAX = 256 * 1024


def instance_token_required(view: View) -> View:
    """Let only callers through that carry the instances' token."""

    @csrf_exempt
    @login_not_required
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        expected = settings.INSTANCE_TOKEN.encode()
        if not expected or not hmac.compare_digest(sent, expected):
            return _refuse(401, "This needs the data-plane instances' token.")
        return view(request)

    return guarded


@instance_token_required
@require_GET
def routing_table(request: HttpRequest) -> HttpResponse:
    """Answer with the latest table; 304 when the caller has it; 404 before the first one.

    A caller that accepts deltas and has a table that is still known gets what has changed since. A
    304 reads nothing but Redis: see `apps.rollouts.announcements` for how old that may be.
    """
    theirs = request.headers.get("If-None-Match", "").strip('"')
    if theirs and theirs == newest_tag():
        return HttpResponse(status=304, headers=_table_headers(theirs))
    newest = PublishedTable.objects.order_by("-generation").only("generation", "digest").first()
    if newest is None:
        return _refuse(404, "No routing table has been published yet.")
    headers = _table_headers(newest.tag)
    if theirs == newest.tag:
        return HttpResponse(status=304, headers=headers)
    takes_delta = theirs and deltas.MEDIA_TYPE in request.headers.get("Accept", "")
    if takes_delta and (delta := delta_to(newest.tag, theirs)) is not None:
        return HttpResponse(delta, content_type=deltas.MEDIA_TYPE, headers=headers)
    document = document_of(newest.tag) or b""
    return HttpResponse(document, content_type="application/json", headers=headers)


def _table_headers(tag: str) -> dict[str, str]:
    return {"ETag": f'"{tag}"', "Vary": "Accept"}


@instance_token_required
@require_POST
def report(request: HttpRequest) -> HttpResponse:
    """Take an instance's report: its ack or nack, its breaker trips, what it dropped."""
    if len(request.body) > REPORT_BYTES_MAX:
        return _refuse(413, f"A report has at most {REPORT_BYTES_MAX} bytes.")
    try:
        message = decode_report(request.body)
    except MessageError as error:
        return _refuse(400, str(error))
    record_report(message, now=database_now())
    return HttpResponse(status=204)


def _refuse(status: int, message: str) -> JsonResponse:
    return JsonResponse({"error": {"code": "refused", "message": message}}, status=status)
