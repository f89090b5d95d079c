"""Confirmation of actions that cannot be undone: the server asks before it acts.

The first POST of such an action changes nothing: the response is the question and the consequences.
Only the form in that response carries the token that confirms, so no action runs unconfirmed,
whatever the scripts of a browser did. HTMX gets the question for its dialog, a browser without
scripts as a page.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpResponse
from django.shortcuts import render
from django.utils.crypto import constant_time_compare, salted_hmac
from django_htmx.http import reswap, retarget

from apps.lib.pages import PageRequest, came_from

FIELD = "confirmed"
REASON_MAX = 1_000


@dataclass(frozen=True)
class Choice:
    """A checkbox that must be ticked to confirm: the override and its label."""

    value: str
    words: str


@dataclass(frozen=True)
class Question:
    """The consequences (`text`) and the label of the button that confirms (`yes`).

    `reason` is the label of the reason field; empty: there is no such field. A confirmation of a
    question that `stands` is valid whatever changed since the question was shown; any other one is
    valid for the exact text that was shown.
    """

    text: str
    yes: str
    reason: str = ""
    needs_reason: bool = False
    choices: tuple[Choice, ...] = ()
    is_danger: bool = True
    stands: bool = False


def ask(request: PageRequest, question: Question) -> HttpResponse | None:
    """Return the response that asks for confirmation; None when the request confirms."""
    token = _token(request, question)
    if constant_time_compare(request.POST.get(FIELD, ""), token):
        return None
    own_fields = {FIELD, "csrfmiddlewaretoken"}
    own_fields |= {"reason"} if question.reason else set()
    own_fields |= {"override"} if question.choices else set()
    context = {
        "question": question,
        "action": request.get_full_path(),
        "token": token,
        "fields": [
            (name, value)
            for name, values in request.POST.lists()
            if name not in own_fields
            for value in values
        ],
        "reason_max": REASON_MAX,
        # Whether the action answers with the live fragment; other actions redirect to a page.
        "swaps_live": request.htmx.target == "live",
        "back": came_from(request, "overview"),
    }
    if not request.htmx:
        return render(request, "confirm.html", context)
    response = render(request, "parts/confirm.html", context)
    return reswap(retarget(response, "#confirm-body"), "innerHTML")


def _token(request: PageRequest, question: Question) -> str:
    shown_text = "" if question.stands else question.text
    text = "\x1f".join([str(request.user.pk), request.path, shown_text])
    return salted_hmac("interlock.confirm", text, algorithm="sha256").hexdigest()
