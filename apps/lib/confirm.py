"""Questions that the server asks before it does what cannot be undone.

The first POST of such an action does nothing: its answer is the question, with what follows from a
yes. Only the form of that answer carries the token that a yes needs, so nothing acts unasked,
whatever a browser's scripts have or have not done by then. HTMX gets the question for its dialog,
a browser without scripts as a page.
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
    """A box that has to be ticked for a yes: an override, and what it means."""

    value: str
    words: str


@dataclass(frozen=True)
class Question:
    """What follows from a yes (`text`) and what its button says.

    `reason` is the label of a field for the reason; empty: none is asked for. A yes to what
    `stands` is good whatever has changed since the question; one to anything else is a yes to the
    very words that were read.
    """

    text: str
    yes: str
    reason: str = ""
    needs_reason: bool = False
    choices: tuple[Choice, ...] = ()
    is_danger: bool = True
    stands: bool = False


def ask(request: PageRequest, question: Question) -> HttpResponse | None:
    """Return the answer that asks; None once its form came back with a yes."""
    token = _token(request, question)
    if constant_time_compare(request.POST.get(FIELD, ""), token):
        return None
    asked = {FIELD, "csrfmiddlewaretoken"}
    asked |= {"reason"} if question.reason else set()
    asked |= {"override"} if question.choices else set()
    context = {
        "question": question,
        "action": request.get_full_path(),
        "token": token,
        "fields": [
            (name, value)
            for name, values in request.POST.lists()
            if name not in asked
            for value in values
        ],
        "reason_max": REASON_MAX,
        # Where an answer belongs that is a fragment; others lead to a page.
        "swaps_live": request.htmx.target == "live",
        "back": came_from(request, "overview"),
    }
    if not request.htmx:
        return render(request, "confirm.html", context)
    answer = render(request, "parts/confirm.html", context)
    return reswap(retarget(answer, "#confirm-body"), "innerHTML")


def _token(request: PageRequest, question: Question) -> str:
    read = "" if question.stands else question.text
    text = "\x1f".join([str(request.user.pk), request.path, read])
    return salted_hmac("interlock.confirm", text, algorithm="sha256").hexdigest()
