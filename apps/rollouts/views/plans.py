"""Pages of plans: the list, one plan, and the form that makes or changes one."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.rollouts.check_kinds import QUESTIONS
from apps.rollouts.forms import PlanForm, StepForm, StepFormSet, make_step_forms
from apps.rollouts.models import Plan
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import DEFAULT_WEIGHTS_BP, StepDocument, document_of
from apps.rollouts.selectors.rollouts import steps_of_saved


@page
@require_safe
def plan_list(request: PageRequest) -> HttpResponse:
    plans = Plan.objects.prefetch_related("steps").order_by("-is_default", "name")
    context = {
        "plans": [(plan, steps_of_saved(plan)) for plan in plans],
        "can_edit": has_role(request.user, None, Role.ADMIN),
    }
    return render(request, "rollouts/plan_list.html", context)


@page
@require_safe
def plan(request: PageRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=pk)
    context = {
        "plan": found,
        "steps": steps_of_saved(found),
        "checks": QUESTIONS,
        "alpha": found.alpha_ppm / 1_000_000,
        "time_scale": PlanForm.initial_of(found)["time_scale"],
        "rollouts": found.rollouts.select_related("model", "target", "baseline", "plan")[:10],
        "can_edit": has_role(request.user, None, Role.ADMIN),
    }
    return render(request, "rollouts/plan.html", context)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def plan_new(request: PageRequest) -> HttpResponse:
    steps = [StepDocument(weight_bp=weight_bp) for weight_bp in DEFAULT_WEIGHTS_BP]
    return _edit(request, None, {}, steps)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def plan_edit(request: PageRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Plan.objects.prefetch_related("steps"), pk=pk)
    return _edit(request, found, PlanForm.initial_of(found), list(document_of(found).steps))


def _edit(
    request: PageRequest, found: Plan | None, initial: dict[str, Any], steps: list[StepDocument]
) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    if request.method != "POST":
        form = PlanForm(initial=initial or None)
        rows = make_step_forms(initial=[StepForm.initial_of(step) for step in steps])
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
        "checks": QUESTIONS,
        "refusal": refusal,
    }
    return render(request, "rollouts/plan_form.html", context, status=status)
