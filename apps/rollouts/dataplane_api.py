"""Endpoints for data-plane instances: pull the routing table, send a report.

Plain Django views on bytes: the table is stored as it is sent and cached by its receivers. Each
instance authenticates with its own token and reports only for itself. A second live instance with
the same name is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from apps.identity import callers
from apps.identity.refusals import Reason, count_refusals
from apps.lib.clock import database_now
from apps.rollouts.duplicate_instances import is_second, keep_home
from apps.rollouts.models import PublishedTable
from apps.rollouts.publication import record_report
from apps.rollouts.table_announcements import newest_tag
from apps.rollouts.table_documents import delta_to, document_of
from contract import deltas
from contract.message_signatures import HOME_HEADER, INSTANCE_HEADER, group_of
from contract.messages import MessageError, decode_report

View = Callable[[HttpRequest], HttpResponse]
REPORT_BYTES_MAX = 256 * 1024


def instance_token_required(view: View) -> View:
    """Admit authenticated instances only, each under its own name.

    A second instance with the same name gets no new table, so that it serves nothing.
    """

    @csrf_exempt
    @login_not_required
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        caller = callers.identify(_secret(request))
        if caller is None:
            return _refuse_unauthenticated(request)
        name = request.headers.get(INSTANCE_HEADER, "")
        if name and not caller.may_speak_for(name):
            return _refuse_foreign(request, caller, name)
        response = view(request)
        if request.method == "GET" and response.status_code == 200 and _is_second(request, name):
            return _refuse_second(request, name)
        return response

    return guarded


@instance_token_required
@require_GET
def routing_table(request: HttpRequest) -> HttpResponse:
    """Return the latest table; 304 when the caller has it, 404 before the first publication.

    A caller that accepts deltas and has a known table gets the difference. A 304 reads only Redis:
    `apps.rollouts.table_announcements` documents how old that may be.
    """
    caller_tag = request.headers.get("If-None-Match", "").strip('"')
    if caller_tag and caller_tag == newest_tag():
        return HttpResponse(status=304, headers=_table_headers(caller_tag))
    newest = PublishedTable.objects.order_by("-generation").only("generation", "digest").first()
    if newest is None:
        return _refuse(404, "No routing table has been published yet.")
    headers = _table_headers(newest.tag)
    if caller_tag == newest.tag:
        return HttpResponse(status=304, headers=headers)
    accepts_delta = caller_tag and deltas.MEDIA_TYPE in request.headers.get("Accept", "")
    if accepts_delta and (delta := delta_to(newest.tag, caller_tag)) is not None:
        return HttpResponse(delta, content_type=deltas.MEDIA_TYPE, headers=headers)
    document = document_of(newest.tag) or b""
    return HttpResponse(document, content_type="application/json", headers=headers)


def _table_headers(tag: str) -> dict[str, str]:
    return {"ETag": f'"{tag}"', "Vary": "Accept"}


@instance_token_required
@require_POST
def report(request: HttpRequest) -> HttpResponse:
    """Store the report of an instance: ack or nack, breaker trips, dropped messages."""
    if len(request.body) > REPORT_BYTES_MAX:
        return _refuse(413, f"The report is too large; the limit is {REPORT_BYTES_MAX} bytes.")
    try:
        message = decode_report(request.body)
    except MessageError as error:
        return _refuse(400, str(error))
    caller = callers.identify(_secret(request))
    if caller is None:
        return _refuse_unauthenticated(request)
    if not caller.may_speak_for(message.instance):
        return _refuse_foreign(request, caller, message.instance)
    if _is_second(request, message.instance):
        return _refuse_second(request, message.instance)
    now = database_now()
    record_report(message, now=now)
    home, has_own = request.headers.get(HOME_HEADER, "")[:64], bool(caller.instance)
    keep_home(message.instance, home, has_own_token=has_own, now=now)
    return HttpResponse(status=204)


def _secret(request: HttpRequest) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _is_second(request: HttpRequest, name: str) -> bool:
    return bool(name) and is_second(name, request.headers.get(HOME_HEADER, ""), database_now())


def _refuse_unauthenticated(request: HttpRequest) -> JsonResponse:
    if instance := callers.revoked_instance(_secret(request)):
        _count(request, instance, Reason.REVOKED)
        return _refuse(401, f"This token of {instance} was revoked or has expired.")
    return _refuse(
        401, "An instance token is required; `interlock instances issue NAME` creates one."
    )


def _refuse_foreign(request: HttpRequest, caller: callers.Caller, name: str) -> JsonResponse:
    _count(request, caller.instance, Reason.FOREIGN)
    return _refuse(403, f"This token belongs to instance {caller.instance}, not to {name!r}.")


def _refuse_second(request: HttpRequest, name: str) -> JsonResponse:
    _count(request, group_of(name), Reason.SECOND)
    return _refuse(
        409,
        f"Another instance named {name} is live. Give each instance its own name and token. An "
        "instance that lost its state directory is accepted once the old one counts as silent.",
    )


def _count(request: HttpRequest, instance: str, reason: str) -> None:
    channel = request.path.rstrip("/").rpartition("/")[2]
    count_refusals(Counter({(instance[:100], channel[:50], reason): 1}))


def _refuse(status: int, message: str) -> JsonResponse:
    return JsonResponse({"error": {"code": "refused", "message": message}}, status=status)
