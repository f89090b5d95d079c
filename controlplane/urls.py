"""URLs. Every page needs a login or a token, except health and the login page."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from apps.models.registration_api import MlflowWebhookView
from apps.rollouts import dataplane_api
from apps.rollouts.governance_api import RolloutPolicyView
from apps.rollouts.serving_api import ServingPolicyView
from controlplane import health, passwords, storage
from controlplane.api import router

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("apps.models.urls")),
    path("rollouts/", include("apps.rollouts.urls")),
    path("experiments/", include("apps.experiments.urls")),
    path("outcomes/", include("apps.experiments.outcome_urls")),
    path("notifications/", include("apps.notifications.urls")),
    path("tokens/", include("controlplane.token_urls")),
    path("login/", auth.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("password/", passwords.ChangeView.as_view(), name="password-change"),
    path("password/reset/", passwords.ResetView.as_view(), name="password-reset"),
    path(
        "password/reset/sent/",
        auth.PasswordResetDoneView.as_view(template_name="registration/reset_sent.html"),
        name="password-reset-sent",
    ),
    path(
        "password/reset/<str:uidb64>/<str:token>/",
        passwords.ConfirmView.as_view(),
        name="password-reset-confirm",
    ),
    path("admin/", admin.site.urls),
    # A namespace, because the API and the pages share URL names such as model-list.
    path("api/v1/", include((router.urls, "api"))),
    path("api/v1/serving-policy/", ServingPolicyView.as_view()),
    path("api/v1/rollout-policy/", RolloutPolicyView.as_view()),
    path("api/v1/registry-webhooks/mlflow", MlflowWebhookView.as_view(), name="mlflow-webhook"),
    path("api/v1/status/", health.StatusView.as_view(), name="status"),
    path("api/v1/retention/", storage.RetentionView.as_view(), name="retention"),
    path("storage/", storage.storage, name="storage"),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="api-docs"),
    path("api/dataplane/v1/routing-table", dataplane_api.routing_table, name="routing-table"),
    path("api/dataplane/v1/report", dataplane_api.report, name="instance-report"),
    path("metrics", health.metrics, name="metrics"),
    path("healthz/live", health.live, name="live"),
    path("healthz/ready", health.ready, name="ready"),
    path("healthz/loops", health.loops, name="loops"),
    path("loops/", health.loops_banner, name="loops-banner"),
]
