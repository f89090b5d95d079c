"""Nothing irreversible happens without a confirmation by the server, on any page.

Every URL that takes a POST of a person is in one of the two tables: a new one must be added to one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from apps.lib.clock import database_now
from apps.models.models import ApiKey, AuditEntry, RegisteredModel, Tenant
from apps.rollouts.models import FreezeWindow, Instance, Release, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.releases import start_release
from controlplane.models import ApiToken
from tests.confirming import post_yes, question_of
from tests.experiments.factories import make_draft, make_metric
from tests.notifications.rows import make_target
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db

# Reversible by the same page or by a later action: pausing, a setting, a form that only creates
# something, or one on a page of its own that shows its effects and has no other button.
REVERSIBLE = {
    "deployment-retry": "loads again",
    "experiment-edit": "a draft",
    "experiment-new": "a draft",
    "experiment-power": "a draft's size",
    "experiment-refresh": "counts again",
    "experiment-resume": "may be paused",
    "experiment-snapshots": "keeps a copy",
    "experiment-weights": "may be changed back",
    "freeze-new": "may be ended",
    "key-create": "may be revoked",
    "metric-edit": "may be edited back",
    "metric-new": "may be deleted",
    "model-restore": "may be archived again",
    "model-settings": "may be changed back",
    "notification-activate": "may be deactivated",
    "notification-new": "may be deactivated",
    "notification-retry": "sends once more",
    "notification-target": "may be changed back",
    "notification-test": "sends a test",
    "outcome-import": "a page of its own",
    "plan-edit": "may be edited back",
    "plan-new": "may be deleted",
    "promote": "a page of its own; the rollout may be aborted",
    "quarantine-lift": "asks for a reason in the same form",
    "registry-sync": "imports",
    "release-new": "a page of its own; the release may be aborted",
    "rollout-limit": "may be changed back",
    "rollout-pause": "may be resumed",
    "rollout-reason": "adds to the log",
    "rollout-resume": "may be paused",
    "rollout-retry": "may be aborted",
    "tenant": "may be changed back",
    "tenant-list": "may be deleted",
    "token-list": "may be revoked",
    "version-alias": "may be moved back",
    "version-register": "a page of its own",
    "version-restore": "may be archived again",
    "version-warmup": "may be changed back",
    "login": "lets in",
    "logout": "lets out",
    "password-change": "asks for the present one",
    "password-reset": "sends a link",
    "password-reset-confirm": "takes the link's token",
}


def rollout() -> Rollout:
    return make_baking(make_model())


def release() -> Release:
    steps = (StepDocument(weight_bp=500), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    models = [make_model("a"), make_model("b")]
    targets = {model: model.versions.get(number=2) for model in models}
    return start_release(name="spring", targets=targets, actor=ANNA, now=database_now())


def freeze() -> FreezeWindow:
    now, hour = database_now(), timedelta(hours=1)
    return FreezeWindow.objects.create(
        reason="fair", starts_at=now - hour, ends_at=now + hour, created_by="x", created_at=now
    )


def gated_rollout() -> Rollout:
    steps = (StepDocument(weight_bp=500, gate="person"), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="gated", steps=steps), is_default=True, actor=ANNA)
    return rollout()


def model_with_way_back() -> RegisteredModel:
    model = make_model(stable=2)
    model.previous_stable = model.versions.get(number=1)
    model.save()
    return model


def tenant() -> Tenant:
    return Tenant.objects.create(name="shop")


def key() -> ApiKey:
    return ApiKey.objects.create(
        tenant=tenant(), name="web", digest="0" * 64, hint="abcd", created_at=database_now()
    )


def silent_instance() -> Instance:
    return make_instance("i-9", reported_at=database_now() - timedelta(minutes=5))


Factory = Callable[[], Any]
# By URL name: the object, the URL's arguments, and the form.
CONFIRMED: dict[
    str, tuple[Factory, Callable[[Any], list[Any]], Callable[[Any], dict[str, Any]]]
] = {
    "experiment-abandon": (make_draft, lambda e: [e.name], lambda e: {"revision": e.revision}),
    "experiment-delete": (make_draft, lambda e: [e.name], lambda e: {"revision": e.revision}),
    "experiment-pause": (make_draft, lambda e: [e.name], lambda e: {"revision": e.revision}),
    "experiment-start": (make_draft, lambda e: [e.name], lambda e: {"revision": e.revision}),
    "experiment-stop": (make_draft, lambda e: [e.name], lambda e: {"revision": e.revision}),
    "freeze-end": (freeze, lambda w: [w.pk], lambda w: {}),
    "instance-forget": (silent_instance, lambda i: [], lambda i: {"name": i.name}),
    "key-required": (tenant, lambda t: [], lambda t: {"required": "0"}),
    "key-revoke": (key, lambda k: [k.tenant.name, k.pk], lambda k: {}),
    "metric-delete": (make_metric, lambda m: [m.name], lambda m: {}),
    "model-rollback": (model_with_way_back, lambda m: [m.name], lambda m: {}),
    **{
        f"version-{action}": (make_model, lambda m: [m.name, 3], lambda m: {})
        for action in ("undeploy", "archive", "delete")
    },
    **{
        f"model-{action}": (
            lambda: make_model(stable=None),
            lambda m: [m.name],
            lambda m: {},
        )
        for action in ("undeploy", "archive", "delete")
    },
    "notification-deactivate": (
        lambda: make_target("https://hooks.example/x"),
        lambda t: [t.name],
        lambda t: {},
    ),
    "notification-rotate": (
        lambda: make_target("https://hooks.example/x"),
        lambda t: [t.name],
        lambda t: {},
    ),
    "plan-delete": (
        lambda: save_plan(
            document=PlanDocument(name="p", steps=(StepDocument(weight_bp=500),)),
            is_default=False,
            actor=ANNA,
        ),
        lambda p: [p.pk],
        lambda p: {},
    ),
    "release-abort": (release, lambda r: [r.pk], lambda r: {}),
    "rollout-abort": (rollout, lambda r: [r.pk], lambda r: {}),
    "rollout-approve": (gated_rollout, lambda r: [r.pk], lambda r: {"revision": r.revision}),
    "rollout-override-freeze": (
        rollout,
        lambda r: [r.pk],
        lambda r: {"revision": r.revision},
    ),
    "rollout-promote": (rollout, lambda r: [r.pk], lambda r: {"revision": r.revision}),
    "rollout-skip": (rollout, lambda r: [r.pk], lambda r: {"revision": r.revision}),
    "tenant-delete": (tenant, lambda t: [t.name], lambda t: {}),
    "token-revoke": (
        lambda: ApiToken.issue(user_id=User.objects.get(username="root").pk, name="ci")[0],
        lambda t: [t.pk],
        lambda t: {},
    ),
}
# Confirmed as well, by a form that also has a page of its own.
CONFIRMED_BY_ITS_PAGE = {"experiment-ship"}


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.mark.parametrize("name", sorted(CONFIRMED))
@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}], ids=["page", "dialog"])
def test_the_first_post_asks_and_does_nothing(
    root: Client, name: str, headers: dict[str, str]
) -> None:
    make, args_of, form_of = CONFIRMED[name]
    thing = make()
    path, form = reverse(name, args=args_of(thing)), form_of(thing)
    before = AuditEntry.objects.count()

    text = question_of(root, path, form, headers=headers)

    assert AuditEntry.objects.count() == before
    assert ("<html" in text) is not bool(headers)
    forged = root.post(path, {**form, "confirmed": "yes"}, headers=headers).content.decode()
    assert 'name="confirmed"' in forged
    assert AuditEntry.objects.count() == before


def test_a_confirmation_is_valid_for_its_own_question_only(root: Client) -> None:
    first, second = make_metric(), make_metric(name="other")
    question = question_of(root, reverse("metric-delete", args=[first.name]))
    token = question.split('name="confirmed" value="')[1].split('"')[0]

    root.post(reverse("metric-delete", args=[second.name]), {"confirmed": token})
    assert type(second).objects.filter(pk=second.pk).exists()
    other = Client()
    other.force_login(User.objects.create_superuser("other"))
    other.post(reverse("metric-delete", args=[first.name]), {"confirmed": token})
    assert type(first).objects.filter(pk=first.pk).exists()
    post_yes(root, reverse("metric-delete", args=[first.name]))
    assert not type(first).objects.filter(pk=first.pk).exists()


def test_a_confirmation_is_valid_for_the_displayed_text_only(root: Client) -> None:
    model = model_with_way_back()
    path = reverse("model-rollback", args=["digits"])
    question = question_of(root, path)
    token = question.split('name="confirmed" value="')[1].split('"')[0]
    model.stable, model.previous_stable = model.versions.get(number=3), model.stable
    model.save()

    again = root.post(path, {"confirmed": token}).content.decode()

    assert "from version 3 to version 2" in again
    model.refresh_from_db()
    assert model.stable.number == 3  # type: ignore[union-attr]


def test_every_page_that_takes_a_post_is_confirmed_or_reversible() -> None:
    known = REVERSIBLE.keys() | CONFIRMED.keys() | CONFIRMED_BY_ITS_PAGE
    assert set(_posts(get_resolver().url_patterns)) - known == set()


def _posts(patterns: list[Any]) -> list[str]:
    """Return the URL names of the pages whose views take a POST."""
    names: list[str] = []
    for each in patterns:
        if isinstance(each, URLResolver):
            if not str(each.pattern).startswith(("api/", "admin/")):
                names += _posts(each.url_patterns)
        elif str(each.pattern).startswith("api/"):
            continue
        elif isinstance(each, URLPattern) and each.name and _takes_post(each):
            names.append(each.name)
    return names


def _takes_post(pattern: URLPattern) -> bool:
    view: Any = pattern.callback
    if hasattr(view, "view_class"):
        return "post" in dir(view.view_class)
    while view is not None:
        closure = getattr(view, "__closure__", None) or ()
        for cell in closure:
            methods = cell.cell_contents
            if isinstance(methods, list | tuple) and "POST" in methods:
                return True
        view = getattr(view, "__wrapped__", None)
    return False
