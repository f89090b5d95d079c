"""URLs under rollouts/: rollouts, plans, releases and rules."""

from __future__ import annotations

from django.urls import path

from apps.rollouts.views import actions, plans, releases, rollouts, rules

urlpatterns = [
    path("", rollouts.rollout_list, name="rollout-list"),
    path("plans/", plans.plan_list, name="plan-list"),
    path("plans/new/", plans.plan_new, name="plan-new"),
    path("plans/<int:pk>/", plans.plan, name="plan"),
    path("plans/<int:pk>/edit/", plans.plan_edit, name="plan-edit"),
    path("plans/<int:pk>/delete/", plans.plan_delete, name="plan-delete"),
    path("releases/", releases.release_list, name="release-list"),
    path("releases/new/", releases.release_new, name="release-new"),
    path("releases/<uuid:pk>/", releases.release, name="release"),
    path("releases/<uuid:pk>/abort/", releases.abort, name="release-abort"),
    path("rules/", rules.rules, name="rules"),
    path("rules/freezes/", rules.freeze_new, name="freeze-new"),
    path("rules/freezes/<int:pk>/end/", rules.freeze_end, name="freeze-end"),
    path("rules/limit/", rules.limit, name="rollout-limit"),
    path(
        "rules/quarantine/<str:name>/<int:number>/lift/",
        rules.quarantine_lift,
        name="quarantine-lift",
    ),
    path("<uuid:pk>/", rollouts.rollout, name="rollout"),
    path("<uuid:pk>/live/", rollouts.rollout_live, name="rollout-live"),
    path("<uuid:pk>/charts/", rollouts.rollout_charts, name="rollout-charts"),
    path("<uuid:pk>/pause/", actions.pause, name="rollout-pause"),
    path("<uuid:pk>/resume/", actions.resume, name="rollout-resume"),
    path("<uuid:pk>/skip/", actions.skip, name="rollout-skip"),
    path("<uuid:pk>/approve/", actions.approve, name="rollout-approve"),
    path("<uuid:pk>/abort/", actions.abort, name="rollout-abort"),
    path("<uuid:pk>/reason/", actions.reason, name="rollout-reason"),
    path("<uuid:pk>/override-freeze/", actions.override_freeze, name="rollout-override-freeze"),
    path("<uuid:pk>/promote/", actions.promote, name="rollout-promote"),
    path("<uuid:pk>/retry/", actions.retry, name="rollout-retry"),
]
