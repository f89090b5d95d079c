"""Pages of plans: the list, one plan, and the form that makes or changes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError, NotFound
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.rollouts.models import Plan
from apps.rollouts.no_control import notices_of
from apps.rollouts.plan_forms import (
    EVIDENCE_MODES,
    PlanForm,
    StepForm,
    StepFormSet,
    make_step_forms,
)
from apps.rollouts.plan_risks import risks_of_plan
from apps.rollouts.plan_store import delete_plan, save_plan
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, document_of
from apps.rollouts.selectors.estimates import times_at_rates
from apps.rollouts.selectors.plans import asked_view, kinds_of_checks
from apps.rollouts.selectors.rollouts import steps_of_plan, steps_of_saved

EMPTY_ROWS = 5


@page
@require_safe
def plan_list(request: PageRequest) -> HttpResponse:
    plans = Plan.objects.prefetch_related("steps").order_by("-is_default", "name")
    context = {
        "plans": [(plan, steps_of_saved(plan)) for plan in plans],
        "templates": [(each, steps_of_plan(each.document.as_followed())) for each in TEMPLATES],
        "can_edit": has_role(request.user, None, Role.ADMIN),
    }
    return render(request, "rollouts/plan_list.html", context)


@page
@require_safe
def plan(request: PageRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=pk)
    document = document_of(found)
    steps = steps_of_saved(found)
    asked = [list(map(asked_view, step.check_documents)) for step in document.as_followed().steps]
    context = {
        "plan": found,
        "steps": steps,
        "rows": list(zip(steps, asked, strict=True)),
        "kinds": kinds_of_checks(),
        "risks": risks_of_plan(document),
        "notices": notices_of(document),
        "times": times_at_rates(document),
        "alpha": found.alpha_ppm / 1_000_000,
        "shown": PlanForm.initial_of(document),
        "evidence_mode": dict(EVIDENCE_MODES)[found.evidence_mode],
        "rollouts": found.rollouts.select_related("model", "target", "baseline", "plan")[:10],
        "can_edit": has_role(request.user, None, Role.ADMIN),
    }
    return render(request, "rollouts/plan.html", context)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def plan_new(request: PageRequest) -> HttpResponse:
    """Make a plan, from a template, as a copy of another plan, or of the usual steps."""
    copied, template = request.GET.get("copy", ""), request.GET.get("template", "")
    if copied.isdecimal() and request.method != "POST":
        source = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=int(copied[:9]))
        return _edit(request, None, _unnamed(document_of(source), source.description))
    if template:
        found = next((each for each in TEMPLATES if each.document.name == template), None)
        if found is None:
            raise NotFound(f"There is no template {template!r} of a plan.")
        return _edit(request, None, _unnamed(found.document, found.description))
    return _edit(request, None, Draft(msgspec.structs.replace(TEMPLATES[0].document, name=""), {}))


@dataclass(frozen=True)
class Draft:
    """What the form shows before anybody typed."""

    document: PlanDocument
    more: dict[str, Any]


def _unnamed(document: PlanDocument, description: str) -> Draft:
    """Return the draft of a plan that is made after another one, under a name that is free."""
    taken = set(Plan.objects.values_list("name", flat=True))
    names = (
        f"{document.name[:90]}{end}" for end in ("", "-copy", *map("-{}".format, range(2, 99)))
    )
    name = next((name for name in names if name not in taken), "")
    return Draft(document, {"name": name, "description": description})


@page
@require_http_methods(["GET", "HEAD", "POST"])
def plan_edit(request: PageRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=pk)
    return _edit(request, found, Draft(document_of(found), PlanForm.initial_of_saved(found)))


@page
@require_POST
def plan_delete(request: PageRequest, pk: int) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    found = get_object_or_404(Plan, pk=pk)

    text = f"Delete the plan {found.name}? Rollouts that follow it go on with the plan that they "
    text += "started with."
    if asked := ask(request, Question(text, f"Delete {found.name}")):
        return asked

    def delete() -> str:
        delete_plan(plan=found, actor=actor_of(request))
        return f"Plan {found.name} is deleted. Rollouts that follow it go on with theirs."

    if attempt(request, delete):
        return go_to(request, "plan", pk=pk)
    return go_to(request, "plan-list")


def _edit(request: PageRequest, found: Plan | None, draft: Draft) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    if request.method != "POST":
        form = PlanForm(initial=PlanForm.initial_of(draft.document) | draft.more)
        steps = [StepForm.initial_of(step) for step in draft.document.steps]
        rows = make_step_forms(initial=steps)
        # Without JavaScript there is no row to add: so many empty ones are shown instead.
        rows.extra = EMPTY_ROWS if "rows" in request.GET else 0
        return _render_form(request, found, form, rows)
    form, rows = PlanForm(request.POST), make_step_forms(request.POST)
    # Both are asked, so that all that is wrong is said at once.
    if not all([form.is_valid(), rows.is_valid()]):
        return _render_form(request, found, form, rows, status=400)
    try:
        saved = save_plan(
            document=form.document(rows),
            description=form.cleaned_data["description"],
            is_default=form.cleaned_data["is_default"],
            plan=found,
            actor=actor_of(request),
        )
    except InterlockError as error:
        return _render_form(request, found, form, rows, refusal=error.message, status=error.status)
    messages.success(request, f"Plan {saved.name} is saved. Running rollouts keep theirs.")
    return redirect("plan", pk=saved.pk)


def _render_form(
    request: PageRequest,
    found: Plan | None,
    form: PlanForm,
    rows: StepFormSet,
    *,
    refusal: str = "",
    status: int = 200,
) -> HttpResponse:
    context = {
        "plan": found,
        "form": form,
        "rows": rows,
        "kinds": kinds_of_checks(),
        "refusal": refusal,
    }
    return render(request, "rollouts/plan_form.html", context, status=status)
