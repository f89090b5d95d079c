"""URLs of the pages under notifications/."""

from __future__ import annotations

from django.urls import path

from apps.notifications import views

urlpatterns = [
    path("", views.target_list, name="notification-list"),
    path("new/", views.target_new, name="notification-new"),
    path("deliveries/<uuid:pk>/retry/", views.delivery_retry, name="notification-retry"),
    path("targets/<str:name>/", views.target, name="notification-target"),
    path("targets/<str:name>/live/", views.target_deliveries, name="notification-live"),
    path("targets/<str:name>/rotate/", views.target_rotate, name="notification-rotate"),
    path("targets/<str:name>/test/", views.target_test, name="notification-test"),
    path("targets/<str:name>/activate/", views.target_activate, name="notification-activate"),
    path("targets/<str:name>/deactivate/", views.target_deactivate, name="notification-deactivate"),
]
