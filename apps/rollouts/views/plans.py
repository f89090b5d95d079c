"""Pages of plans: the list, one plan, and the form."""

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
from apps.rollouts.selectors.plans import kinds_of_checks, planned_check_view
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
    row = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=pk)
    document = document_of(row)
    steps = steps_of_saved(row)
    checks = [
        list(map(planned_check_view, step.check_documents)) for step in document.as_followed().steps
    ]
    context = {
        "plan": row,
        "steps": steps,
        "rows": list(zip(steps, checks, strict=True)),
        "kinds": kinds_of_checks(),
        "risks": risks_of_plan(document),
        "notices": notices_of(document),
        "times": times_at_rates(document),
        "alpha": row.alpha_ppm / 1_000_000,
        "shown": PlanForm.initial_of(document),
        "evidence_mode": dict(EVIDENCE_MODES)[row.evidence_mode],
        "rollouts": row.rollouts.select_related("model", "target", "baseline", "plan")[:10],
        "can_edit": has_role(request.user, None, Role.ADMIN),
    }
    return render(request, "rollouts/plan.html", context)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def plan_new(request: PageRequest) -> HttpResponse:
    """Create a plan: from a template, as a copy, or from the default steps."""
    copied, template = request.GET.get("copy", ""), request.GET.get("template", "")
    if copied.isdecimal() and request.method != "POST":
        original = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=int(copied[:9]))
        return _edit(request, None, _copy(document_of(original), original.description))
    if template:
        source = next((each for each in TEMPLATES if each.document.name == template), None)
        if source is None:
            raise NotFound(f"There is no plan template {template!r}.")
        return _edit(request, None, _copy(source.document, source.description))
    return _edit(request, None, Draft(msgspec.structs.replace(TEMPLATES[0].document, name=""), {}))


@dataclass(frozen=True)
class Draft:
    """The initial values of the form."""

    document: PlanDocument
    more: dict[str, Any]


def _copy(document: PlanDocument, description: str) -> Draft:
    """Return the draft of a copy, with a name that is not in use."""
    taken = set(Plan.objects.values_list("name", flat=True))
    names = (
        f"{document.name[:90]}{end}" for end in ("", "-copy", *map("-{}".format, range(2, 99)))
    )
    name = next((name for name in names if name not in taken), "")
    return Draft(document, {"name": name, "description": description})


@page
@require_http_methods(["GET", "HEAD", "POST"])
def plan_edit(request: PageRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=pk)
    return _edit(request, row, Draft(document_of(row), PlanForm.initial_of_saved(row)))


@page
@require_POST
def plan_delete(request: PageRequest, pk: int) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    row = get_object_or_404(Plan, pk=pk)

    text = f"Delete the plan {row.name}? Running rollouts keep the plan that they started with."
    if confirmation := ask(request, Question(text, f"Delete {row.name}")):
        return confirmation

    def delete() -> str:
        delete_plan(plan=row, actor=actor_of(request))
        return f"Plan {row.name} is deleted. Running rollouts keep their plan."

    if attempt(request, delete):
        return go_to(request, "plan", pk=pk)
    return go_to(request, "plan-list")


def _edit(request: PageRequest, row: Plan | None, draft: Draft) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    if request.method != "POST":
        form = PlanForm(initial=PlanForm.initial_of(draft.document) | draft.more)
        steps = [StepForm.initial_of(step) for step in draft.document.steps]
        rows = make_step_forms(initial=steps)
        # Without JavaScript no row can be added, so the page can show empty ones.
        rows.extra = EMPTY_ROWS if "rows" in request.GET else 0
        return _render_form(request, row, form, rows)
    form, rows = PlanForm(request.POST), make_step_forms(request.POST)
    # Both are validated, so that all errors are shown at once.
    if not all([form.is_valid(), rows.is_valid()]):
        return _render_form(request, row, form, rows, status=400)
    try:
        saved = save_plan(
            document=form.document(rows),
            description=form.cleaned_data["description"],
            is_default=form.cleaned_data["is_default"],
            plan=row,
            actor=actor_of(request),
        )
    except InterlockError as error:
        return _render_form(request, row, form, rows, refusal=error.message, status=error.status)
    messages.success(request, f"Plan {saved.name} is saved. Running rollouts keep their plan.")
    return redirect("plan", pk=saved.pk)


def _render_form(
    request: PageRequest,
    row: Plan | None,
    form: PlanForm,
    rows: StepFormSet,
    *,
    refusal: str = "",
    status: int = 200,
) -> HttpResponse:
    context = {
        "plan": row,
        "form": form,
        "rows": rows,
        "kinds": kinds_of_checks(),
        "refusal": refusal,
    }
    return render(request, "rollouts/plan_form.html", context, status=status)
