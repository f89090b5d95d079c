"""Pages to change one's password, and to reset a forgotten one by e-mail.

A response never reveals whether a name or address exists: it is always the same, and the mail is
sent in a thread, so that the response time is the same too.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from smtplib import SMTPException
from threading import Thread
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import views as auth
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import PasswordResetForm
from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend
from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.urls import reverse_lazy
from django.utils import timezone
from django.utils.decorators import method_decorator

from apps.lib.actors import Actor
from apps.models.access import actor_of
from apps.models.audit import record_audit
from apps.models.models import AuditEntry
from controlplane.client_address import client_address

log = logging.getLogger(__name__)

RESET_REQUESTED = "password.reset_asked"
# In each period a user gets at most one mail, and all users together at most MAILS_MAX.
MAIL_EVERY = timedelta(minutes=10)
MAILS_MAX = 20
MAIL_TIMEOUT_S = 10


class ChangeView(auth.PasswordChangeView):
    """Changes the password and ends the user's other sessions; API tokens stay valid."""

    template_name = "registration/change.html"
    success_url = reverse_lazy("token-list")

    def form_valid(self, form: Any) -> HttpResponse:
        response = super().form_valid(form)
        name = form.user.get_username()
        record_audit(actor=actor_of(self.request), action="password.changed", target=name)
        messages.success(
            self.request,
            "Your password is changed and your other sessions have ended. Revoke any token that "
            "somebody else may know.",
        )
        return response


class ResetForm(PasswordResetForm):
    """Sends the mail through the configured server, at most one per MAIL_EVERY to each user."""

    # The client's address for the audit log; set by the view.
    origin = ""

    def get_users(self, email: str) -> Any:
        recent = AuditEntry.objects.filter(
            action=RESET_REQUESTED, at__gt=timezone.now() - MAIL_EVERY
        )
        for user in super().get_users(email):
            name = user.get_username()
            if recent.filter(target=name).exists() or recent.count() >= MAILS_MAX:
                continue
            record_audit(actor=Actor(name, self.origin), action=RESET_REQUESTED, target=name)
            yield user

    def send_mail(self, *args: Any, **options: Any) -> None:
        subject, template, context, _, to, *_ = args
        mail = EmailMessage(
            subject=" ".join(loader.render_to_string(subject, context).split()),
            body=loader.render_to_string(template, context),
            to=[to],
            connection=EmailBackend(**settings.EMAIL_SERVER, timeout=MAIL_TIMEOUT_S),
        )
        Thread(target=_send, args=(mail,), daemon=True).start()


def _send(mail: EmailMessage) -> None:
    try:
        mail.send()
    except (OSError, SMTPException):
        log.exception("password.mail_failed")


@method_decorator(login_not_required, name="dispatch")
class ResetView(auth.PasswordResetView):
    template_name = "registration/reset.html"
    form_class = ResetForm
    email_template_name = "registration/reset_mail.txt"
    subject_template_name = "registration/reset_subject.txt"
    success_url = reverse_lazy("password-reset-sent")

    def dispatch(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        own = f"{request.scheme}://{request.get_host()}"
        self.extra_email_context = {"base": settings.PUBLIC_URL or own}
        self.extra_context = {"has_mail": bool(settings.EMAIL_SERVER)}
        return super().dispatch(request, *args, **options)

    def form_valid(self, form: Any) -> HttpResponse:
        if not settings.EMAIL_SERVER:
            return self.render_to_response(self.get_context_data(form=form), status=409)
        form.origin = client_address(self.request)
        return super().form_valid(form)


class ConfirmView(auth.PasswordResetConfirmView):
    template_name = "registration/reset_confirm.html"
    success_url = reverse_lazy("login")

    def form_valid(self, form: Any) -> HttpResponse:
        response = super().form_valid(form)
        name = form.user.get_username()
        actor = Actor(name, client_address(self.request))
        record_audit(actor=actor, action="password.reset", target=name)
        messages.success(self.request, "Your password is changed. Log in with it.")
        return response
