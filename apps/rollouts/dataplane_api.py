"""What data-plane instances call: pull the routing table, report what they serve from.

Plain Django views on bytes: the table is stored as it is sent, so a pull costs one row.
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
from apps.rollouts.publication import latest_table, record_report
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
    """Answer with the latest table; 304 when the caller has it; 404 before the first one."""
    table = latest_table()
    if table is None:
        return _refuse(404, "No routing table has been published yet.")
    etag = f'"{table.tag}"'
    if request.headers.get("If-None-Match") == etag:
        return HttpResponse(status=304, headers={"ETag": etag})
    return HttpResponse(
        bytes(table.document), content_type="application/json", headers={"ETag": etag}
    )


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
