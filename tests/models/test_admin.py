"""The admin of the registry is read-only, except for roles and clusters."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from apps.models.models import (
    AuditEntry,
    ModelRole,
    RefusedImport,
    ServingCluster,
    ServingPolicy,
    Tenant,
)
from controlplane.models import ApiToken
from tests.rollouts.factories import make_model

pytestmark = pytest.mark.django_db

LISTS = [
    "registry_registeredmodel",
    "registry_modelversion",
    "registry_refusedimport",
    "registry_servingcluster",
    "registry_deployment",
    "registry_modelrole",
    "registry_auditentry",
    "registry_tenant",
    "registry_servingpolicy",
    "controlplane_apitoken",
    "auth_user",
]


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.mark.parametrize("name", LISTS)
def test_each_list_can_be_opened(root: Client, name: str) -> None:
    make_model()
    RefusedImport.objects.create(model_name="digits", number=9, reason="no ONNX")
    AuditEntry.objects.create(actor="anna", action="x", target="y")
    Tenant.objects.create(name="shop")
    ServingPolicy.objects.create()

    assert root.get(reverse(f"admin:{name}_changelist")).status_code == 200


def test_an_audit_entry_can_be_neither_changed_nor_deleted(root: Client) -> None:
    entry = AuditEntry.objects.create(actor="anna", action="x", target="y")

    root.post(reverse("admin:registry_auditentry_change", args=[entry.pk]), {"actor": "mallory"})
    response = root.post(
        reverse("admin:registry_auditentry_delete", args=[entry.pk]), {"post": "yes"}
    )

    entry.refresh_from_db()
    assert entry.actor == "anna"
    assert response.status_code == 403


def test_the_stable_version_cannot_be_edited(root: Client) -> None:
    model = make_model()

    text = root.get(reverse("admin:registry_registeredmodel_change", args=[model.pk])).content

    assert b'name="stable"' not in text


def test_a_role_is_assigned(root: Client) -> None:
    user, model = User.objects.create_user("olga"), make_model()
    form = {"user": user.pk, "model": model.pk, "role": "operator"}

    root.post(reverse("admin:registry_modelrole_add"), form)

    assert ModelRole.objects.get().role == "operator"


def test_a_token_for_another_user_cannot_be_created(root: Client) -> None:
    assert root.get(reverse("admin:controlplane_apitoken_add")).status_code == 403
    assert not ApiToken.objects.exists()


def test_a_tenant_is_read_only(root: Client) -> None:
    tenant = Tenant.objects.create(name="shop")
    page = reverse("admin:registry_tenant_change", args=[tenant.pk])

    assert root.get(page).status_code == 200
    assert root.post(page, {"name": "x"}).status_code == 403


def test_a_clusters_hedging_is_changed_and_audited(root: Client) -> None:
    make_model()
    cluster = ServingCluster.objects.get()
    form = {
        "name": cluster.name,
        "endpoints": '["http://triton:8000"]',
        "repository_path": "/x",
        "is_default": "on",
        "hedge_after_ms": "40",
    }

    root.post(reverse("admin:registry_servingcluster_change", args=[cluster.pk]), form)

    cluster.refresh_from_db()
    entry = AuditEntry.objects.get(action="cluster.changed")
    assert (cluster.hedge_after_ms, entry.before, entry.after) == (
        40,
        {"hedge_after_ms": None},
        {"hedge_after_ms": 40},
    )
