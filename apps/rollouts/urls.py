"""Pages under rollouts/: rollouts and the plans that they follow."""

from __future__ import annotations

from django.urls import path

from apps.rollouts.views import plans, rollouts

urlpatterns = [
    path("", rollouts.rollout_list, name="rollout-list"),
    path("plans/", plans.plan_list, name="plan-list"),
    path("plans/new/", plans.plan_new, name="plan-new"),
    path("plans/<int:pk>/", plans.plan, name="plan"),
    path("plans/<int:pk>/edit/", plans.plan_edit, name="plan-edit"),
    path("<uuid:pk>/", rollouts.rollout, name="rollout"),
    path("<uuid:pk>/live/", rollouts.rollout_live, name="rollout-live"),
    path("<uuid:pk>/charts/", rollouts.rollout_charts, name="rollout-charts"),
    path("<uuid:pk>/pause/", rollouts.pause, name="rollout-pause"),
    path("<uuid:pk>/resume/", rollouts.resume, name="rollout-resume"),
    path("<uuid:pk>/abort/", rollouts.abort, name="rollout-abort"),
    path("<uuid:pk>/promote/", rollouts.promote, name="rollout-promote"),
]
