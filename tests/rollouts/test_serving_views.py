"""Pages of tenants, API keys, serving settings and warm-up; what they warn of."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ApiKey, ModelRole, RegisteredModel, Role, Tenant
from apps.rollouts import tenants
from contract.routing import Cache
from tests.confirming import post_yes, question_of
from tests.models.test_warmup import fitting
from tests.rollouts.callers import rendered
from tests.rollouts.factories import (
    ANNA,
    latest,
    make_instance,
    make_model,
    send,
    send_shadow,
)

pytestmark = pytest.mark.django_db

QUOTA = {"requests_per_s": "500", "burst": "", "concurrency_max": "64", "priority": "high"}


@pytest.fixture
def admin(client: Client) -> Client:
    user = User.objects.create_user("ada")
    ModelRole.objects.create(user=user, role=Role.ADMIN)
    client.force_login(user)
    return client


@pytest.fixture
def viewer() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("vera"))
    return client


def text_of(client: Client, path: str) -> str:
    return rendered(client.get(path))


def make_tenant() -> Tenant:
    return tenants.create_tenant(name="shop", actor=ANNA, now=database_now())


def make_key(tenant: Tenant) -> ApiKey:
    return tenants.create_key(tenant=tenant, name="web", actor=ANNA, now=database_now())[0]


def test_without_a_tenant_the_page_says_what_one_is_for(viewer: Client) -> None:
    text = text_of(viewer, "/tenants/")

    assert "No tenant yet" in text
    assert "for people and CI pipelines" in text
    assert "make-tenant" not in text


def test_a_tenant_is_made_and_its_page_asks_for_a_key(admin: Client) -> None:
    response = admin.post("/tenants/", {"name": "shop", **QUOTA}, follow=True)

    assert response.redirect_chain == [("/tenants/shop/", 302)]
    assert "shop cannot send requests" in rendered(response)
    assert Tenant.objects.get().requests_per_s == 500
    table = text_of(admin, "/tenants/").split("<tbody>")[1].split("</tbody>")[0]
    assert "no limit" not in table
    assert ">500<" in table


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({"name": ""}, 400, "This field is required"),
        ({"name": "two words"}, 400, "A name has at most 100 letters"),
        ({"name": "shop"}, 400, "already exists"),
        ({"name": "x", "requests_per_s": "0"}, 400, "greater than or equal to 0.001"),
        (
            {"name": "x", "requests_per_s": "", "burst": "5"},
            400,
            "needs a rate, requests per second",
        ),
        ({"name": "x", "priority": "urgent"}, 400, "not one of the available choices"),
    ],
)
def test_bad_input_is_told_beside_what_was_typed(
    admin: Client, form: dict[str, str], status: int, message: str
) -> None:
    make_tenant()
    response = admin.post("/tenants/", {**QUOTA, **form})

    assert response.status_code == status
    assert message in rendered(response)
    assert Tenant.objects.count() == 1


def test_a_quota_is_changed(admin: Client) -> None:
    make_key(make_tenant())
    response = admin.post("/tenants/shop/", QUOTA, follow=True)

    assert "The quota of shop is changed." in rendered(response)
    assert latest().tenants["shop"].concurrency_max == 64
    refused = admin.post("/tenants/shop/", {**QUOTA, "concurrency_max": "0"})
    assert refused.status_code == 400
    assert latest().tenants["shop"].concurrency_max == 64


def test_a_key_is_shown_once_and_revoked(admin: Client) -> None:
    make_tenant()
    response = admin.post("/tenants/shop/keys/", {"name": "web"})
    match = re.search(r"ilapp_[\w-]+", rendered(response))

    assert match is not None
    assert (response.status_code, "no-store" in response["Cache-Control"]) == (201, True)
    page = text_of(admin, "/tenants/shop/")
    assert match[0] not in page
    assert f"…{match[0][-4:]}" in page
    post_yes(admin, f"/tenants/shop/keys/{ApiKey.objects.get().pk}/revoke/")
    assert "Revoked (1)" in text_of(admin, "/tenants/shop/")
    assert latest().tenants["shop"].keys == ()


def test_a_key_of_some_models_says_which(admin: Client) -> None:
    make_tenant()
    make_model()
    created = admin.post("/tenants/shop/keys/", {"name": "web", "models": ["digits"]})
    assert created.status_code == 201
    assert list(latest().tenants["shop"].limited_keys.values()) == [("digits",)]
    assert 'data-label="Models">digits<' in rendered(created)
    assert admin.post("/tenants/shop/keys/", {"name": "w", "models": ["x"]}).status_code == 400


def test_a_key_needs_a_name(admin: Client) -> None:
    make_tenant()
    assert admin.post("/tenants/shop/keys/", {"name": " "}).status_code == 400
    assert not ApiKey.objects.exists()


def test_requiring_a_key_asks_first_and_is_refused_without_one(admin: Client) -> None:
    tenant = make_tenant()
    refused = post_yes(admin, "/key-required/", {"required": "1"}, follow=True)
    assert "would refuse every request" in rendered(refused)
    make_key(tenant)
    question = question_of(admin, "/key-required/", {"required": "1"})
    assert "none of the 1 active key get 401" in question
    post_yes(admin, "/key-required/", {"required": "1"})
    assert latest().key_required is True
    post_yes(admin, "/key-required/", {"required": "0"})
    assert latest().key_required is False


def test_a_required_key_that_nobody_has_is_warned_of(admin: Client) -> None:
    tenant = make_tenant()
    make_key(tenant)
    post_yes(admin, "/key-required/", {"required": "1"})
    post_yes(admin, "/tenants/shop/delete/")

    assert "every request is refused" in text_of(admin, "/tenants/")


@pytest.mark.parametrize(
    "path",
    [
        "/tenants/",
        "/tenants/shop/",
        "/tenants/shop/keys/",
        "/tenants/shop/keys/1/revoke/",
        "/tenants/shop/delete/",
        "/key-required/",
        "/models/digits/settings/",
        "/models/digits/versions/1/warmup/",
    ],
)
def test_a_viewer_looks_and_changes_nothing(viewer: Client, path: str) -> None:
    make_model()
    make_tenant()

    assert viewer.post(path, {"name": "x"}).status_code == 403
    assert "make-key" not in text_of(viewer, "/tenants/shop/")
    assert "edit-settings" not in text_of(viewer, "/models/digits/")


def settings_form(model: RegisteredModel, **changed: Any) -> dict[str, Any]:
    names = (
        "timeout_ms",
        "max_batch_size",
        "max_queue_delay_us",
        "max_queue_size",
        "breaker_window",
        "breaker_failures",
        "breaker_open_ms",
        "unit_header",
        "unit_parameter",
    )
    values = {name: getattr(model, name) for name in names}
    return {**values, "cache": "off", "cache_ttl_s": "", "description": "", **changed}


def test_the_model_page_shows_its_settings_and_leads_to_their_form(admin: Client) -> None:
    make_model()
    page = text_of(admin, "/models/digits/")
    assert "opens at 10 failures in 20 responses" in page
    assert "/models/digits/settings/" in page
    assert "Maximum queue size, rows" in text_of(admin, "/models/digits/settings/")


@pytest.mark.parametrize(
    ("typed", "cache"),
    [
        ({"cache": "own", "cache_ttl_s": "60"}, Cache(ttl_s=60)),
        ({"cache": "shared", "cache_ttl_s": "60"}, Cache(ttl_s=60, shared=True)),
        ({"cache": "off", "cache_ttl_s": "60"}, None),
    ],
)
def test_settings_are_saved_and_published(
    admin: Client, typed: dict[str, str], cache: Cache | None
) -> None:
    form = settings_form(make_model(), timeout_ms=250, **typed)
    response = admin.post("/models/digits/settings/", form, follow=True)

    assert "The serving settings are changed" in rendered(response)
    route = latest().models["digits"]
    assert (route.timeout_ms, route.cache) == (250, cache)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"timeout_ms": ""}, "This field is required"),
        ({"timeout_ms": "0"}, "greater than or equal to 1"),
        ({"max_queue_size": "8"}, "less than max_batch_size (32)"),
        ({"breaker_failures": "21"}, "the breaker would never open"),
        ({"cache": "own"}, "Enter the cache lifetime"),
        ({"cache": "everywhere"}, "not one of the available choices"),
        ({"unit_header": "x unit"}, "letters, digits and dashes only"),
    ],
)
def test_invalid_settings_are_refused(admin: Client, typed: dict[str, str], message: str) -> None:
    response = admin.post("/models/digits/settings/", settings_form(make_model(), **typed))

    assert response.status_code == 400
    assert message in rendered(response)


def test_warm_up_requests_are_edited_as_json(admin: Client) -> None:
    make_model()
    path = "/models/digits/versions/2/warmup/"
    assert "pixels" in text_of(admin, path)
    admin.post(path, {"requests": json.dumps([fitting()])})
    assert "answered 1 warm-up request on every" in text_of(admin, "/models/digits/versions/2/")
    assert "&quot;datatype&quot;" in text_of(admin, path)
    for typed, message in (("{", "This is not JSON"), ("[[]]", "&#x27;pixels&#x27; 0 times")):
        response = admin.post(path, {"requests": typed})
        assert (response.status_code, message in rendered(response)) == (400, True)
    admin.post(path, {"requests": ""})
    assert "answered a request of zeros" in text_of(admin, "/models/digits/versions/2/")


def test_what_the_cache_answered_is_shown_where_there_is_a_cache(viewer: Client) -> None:
    make_model()
    send("digits", 1, requests=60)
    assert "From cache" not in text_of(viewer, "/models/digits/")
    send("digits", 1, requests=0, latency={}, cache_hits=180)
    page = text_of(viewer, "/models/digits/")
    assert "From cache" in page
    assert "75.0 %" in page


def test_shadows_are_shown_where_there_are_some(viewer: Client) -> None:
    make_model()
    assert "Shadows of the last hour" not in text_of(viewer, "/models/digits/")
    send_shadow(largest_difference=float("inf"))
    page = text_of(viewer, "/models/digits/")
    assert "Shadows of the last hour" in page
    assert "10.0 %" in page
    assert ">inf<" in page


@pytest.mark.parametrize("path", ["/", "/fleet/"])
def test_pins_and_instances_that_stay_behind_are_warned_of(viewer: Client, path: str) -> None:
    make_key(make_tenant())
    make_instance("edge-1", pinned=["digits"])
    make_instance("edge-2", applied_generation=-5)
    page = text_of(viewer, path)
    assert "<b>edge-1</b>: the instance's operator pinned digits to stable" in page
    assert "<b>edge-2</b> still serves generation -5" in page
