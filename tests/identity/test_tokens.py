"""Tokens of instances: issued once, rotated with an overlap, revoked; by REST and at start-up."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client

from apps.identity import callers
from apps.identity.models import InstanceToken
from apps.identity.tokens import OVERLAP_MAX, adopt_token, issue_token, revoke_token, rotate_token
from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry, ModelRole
from contract.message_signatures import seal_root
from controlplane.models import ApiToken
from tests.rollouts.factories import ANNA

pytestmark = pytest.mark.django_db

TOKENS = "/api/v1/instance-tokens/"


def issue(instance: str = "edge") -> tuple[InstanceToken, str]:
    return issue_token(instance=instance, actor=ANNA, now=database_now())


def client(role: str | None = "admin") -> Client:
    user = User.objects.create_user("bob")
    if role:
        ModelRole.objects.create(user=user, role=role)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


def actions() -> list[str]:
    entries = AuditEntry.objects.filter(action__startswith="instance_token.").order_by("id")
    return [entry.action.rpartition(".")[2] for entry in entries]


def test_a_token_is_stored_as_digest_and_seal_root() -> None:
    row, secret = issue()
    stored = {str(getattr(row, field.name)) for field in row._meta.fields}
    assert secret not in stored
    assert row.seal_root == seal_root(secret).hex()
    assert secret.endswith(row.hint)
    assert callers.identify(secret) == callers.Caller("edge")
    row.refresh_from_db()
    assert row.last_used_at is not None


def test_an_instance_has_one_first_token() -> None:
    issue()
    with pytest.raises(Conflict, match="rotate it"):
        issue()
    with pytest.raises(Conflict, match="no valid token"):
        rotate_token(instance="other", actor=ANNA, now=database_now())


@pytest.mark.parametrize("name", ["", "a/0", "a b", "edge\n", "x" * 101])
def test_a_name_must_be_valid_for_an_instance(name: str) -> None:
    with pytest.raises(Invalid, match="a name has"):
        issue(name)


def test_a_rotated_token_stays_valid_for_the_overlap() -> None:
    old, _ = issue()
    now, overlap = database_now(), timedelta(hours=2)
    new, _ = rotate_token(instance="edge", overlap=overlap, actor=ANNA, now=now)
    old.refresh_from_db()
    assert [old.state(now), new.state(now)] == ["expiring", "active"]
    assert old.state(now + overlap) == "expired"
    # A second rotation may shorten the overlap, never extend it.
    rotate_token(instance="edge", overlap=3 * overlap, actor=ANNA, now=now)
    old.refresh_from_db()
    assert old.expires_at == now + overlap
    assert actions() == ["issued", "issued", "rotated", "issued", "rotated"]


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), OVERLAP_MAX + timedelta(seconds=1)])
def test_an_overlap_out_of_range_is_refused(overlap: timedelta) -> None:
    issue()
    with pytest.raises(Invalid, match="overlap_s"):
        rotate_token(instance="edge", overlap=overlap, actor=ANNA, now=database_now())


def test_a_revoked_token_is_invalid_at_once_and_for_ever() -> None:
    row, secret = issue()
    assert callers.identify(secret)
    for _ in range(2):
        revoke_token(token=row, actor=ANNA, now=database_now())
    assert callers.identify(secret) is None
    assert not adopt_token(instance="edge", secret=secret, actor=ANNA, now=database_now())
    assert callers.identify(secret) is None
    assert actions() == ["issued", "revoked"]


def test_another_process_rejects_a_revoked_token_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row, secret = issue()
    assert callers.identify(secret)
    InstanceToken.objects.filter(pk=row.pk).update(revoked_at=database_now())
    assert callers.identify(secret)
    monkeypatch.setattr(callers, "monotonic", lambda: 1e12)
    assert callers.identify(secret) is None


def test_over_rest_the_token_is_shown_once() -> None:
    caller = client()
    issued = caller.post(TOKENS, {"instance": "edge"}, content_type="application/json")
    assert (issued.status_code, issued["Cache-Control"]) == (201, "no-store")
    body = {"instance": "edge", "overlap_s": 60}
    rotated = caller.post(f"{TOKENS}rotate/", body, content_type="application/json")
    assert rotated.status_code == 201
    revoked = caller.post(f"{TOKENS}{issued.json()['id']}/revoke/")
    assert revoked.json()["state"] == "revoked"
    listed = caller.get(TOKENS)
    assert {row["state"] for row in listed.json()["results"]} == {"active", "revoked"}
    for response in (issued, rotated):
        assert callers.identify(response.json()["token"]) or response is issued
        assert response.json()["token"] not in listed.content.decode()


def test_only_an_administrator_issues() -> None:
    caller = client("operator")
    row, _ = issue()
    for path in (TOKENS, f"{TOKENS}rotate/", f"{TOKENS}{row.pk}/revoke/"):
        response = caller.post(path, {"instance": "edge"}, content_type="application/json")
        assert response.status_code == 403
    assert caller.get(TOKENS).status_code == 200


def bootstrap() -> str:
    out = StringIO()
    call_command("bootstrap", stdout=out)
    return out.getvalue()


def test_a_new_installation_issues_its_data_planes_token(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERLOCK_INSTANCE_NAME", "local")
    bootstrap()
    assert not InstanceToken.objects.exists()
    settings.OWN_TOKENS_REQUIRED = True
    assert "token of instance local issued" in bootstrap()
    assert "token of" not in bootstrap()
    assert callers.identify(configured.INSTANCE_TOKEN) == callers.Caller("local")
    monkeypatch.setenv("INTERLOCK_INSTANCE_NAME", "not/that")
    with pytest.raises(CommandError, match="INTERLOCK_INSTANCE_NAME"):
        bootstrap()
