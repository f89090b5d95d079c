"""Limits failed logins and records logins in the audit log.

django-axes counts failures and locks a name out from an address. `Guard` adds two wider limits: for
guesses at one name from many addresses, and at many names from one address.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from axes.signals import user_locked_out
from django.conf import settings
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db.models import Q, Sum
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from apps.lib.actors import Actor
from apps.models.audit import record_audit
from apps.models.models import AuditEntry
from controlplane.client_address import client_address

NAME_MAX = 150
LOCKED = "login.locked"


class Guard(AxesDatabaseHandler):  # type: ignore[misc]
    """The axes handler; it also locks a name for all addresses and an address for all names."""

    def is_locked(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> bool:
        if super().is_locked(request, credentials):
            return True
        since = timezone.now() - settings.AXES_COOLOFF_TIME
        recent = AccessAttempt.objects.filter(attempt_time__gt=since)
        wide = [Q(ip_address=client_address(request))]
        if name := (credentials or {}).get("username"):
            wide.append(Q(username=name))
        return any(_failures(recent.filter(of)) >= settings.LOGIN_FAILURES_WIDE_MAX for of in wide)


def _failures(attempts: Any) -> int:
    return attempts.aggregate(sum=Sum("failures_since_start"))["sum"] or 0


def locked_out(
    request: HttpRequest, response: HttpResponse | None = None, credentials: Any = None
) -> HttpResponse:
    """Respond to a locked-out login with 429 and Retry-After."""
    minutes = int(settings.AXES_COOLOFF_TIME / timedelta(minutes=1))
    page = render(request, "registration/locked.html", {"minutes": minutes}, status=429)
    page["Retry-After"] = str(minutes * 60)
    return page


def username_of(request: HttpRequest | None, credentials: dict[str, Any] | None) -> str | None:
    """Return the name under which a login is counted, cleaned so that a row can hold it."""
    fields = credentials or (request.POST if request else {})
    name = fields.get("username")
    return clean_name(name) if isinstance(name, str) else None


def clean_name(name: str) -> str:
    return name.replace("\0", "")[:NAME_MAX]


# Signals cover all logins: the admin has its own login view.
@receiver(user_logged_in)
def _logged_in(sender: Any, request: HttpRequest | None, user: Any, **_: Any) -> None:
    _record("login.succeeded", user.get_username(), request)


@receiver(user_logged_out)
def _logged_out(sender: Any, request: HttpRequest | None, user: Any, **_: Any) -> None:
    if user is not None:
        _record("logout", user.get_username(), request)


@receiver(user_login_failed)
def _failed(
    sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any
) -> None:
    # Attempts during a lock are not recorded, so that an attacker cannot fill the log.
    if getattr(request, "axes_locked_out", False):
        return
    _record("login.failed", clean_name(str(credentials.get("username", ""))), request)


@receiver(user_locked_out)
def _locked(sender: Any, request: HttpRequest, username: str = "", **_: Any) -> None:
    name = clean_name(str(username or ""))
    since = timezone.now() - settings.AXES_COOLOFF_TIME
    # Once per lock, so that further attempts cannot fill the log.
    if not AuditEntry.objects.filter(action=LOCKED, target=name, at__gt=since).exists():
        _record(LOCKED, name, request)


def _record(action: str, name: str, request: HttpRequest | None) -> None:
    if request is None or "REMOTE_ADDR" not in request.META:
        # A program created the session; there is no client address.
        return
    origin = client_address(request)
    record_audit(actor=Actor(name or "anonymous", origin), action=action, target=name)
