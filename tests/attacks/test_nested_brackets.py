"""Fifty thousand opening brackets: in the data plane, and in the control plane's API."""

import json

import httpx
import pytest
from django.contrib.auth.models import User

from apps.models.models import ModelRole
from controlplane.models import ApiToken

BODY = b"[" * 50_000


async def test_the_data_plane_reports_where_it_is_too_deep(ground):
    answers = await ground.attack("nested")
    assert set(answers) == {"400 malformed_json"}
    answer = await ground.group._request("POST", "/predict", content=BODY)
    assert "column 10" in answer.json()["error"]


@pytest.mark.django_db(transaction=True)
def test_the_control_plane_reports_where_it_is_too_deep(live_server):
    user = User.objects.create_user("anna")
    ModelRole.objects.create(user=user, role="admin")
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    headers = {"Authorization": f"Bearer {secret}", "content-type": "application/json"}
    for path in ("plans", "experiments", "models/a/versions"):
        url = f"{live_server.url}/api/v1/{path}/"
        answer = httpx.post(url, content=BODY, headers=headers, timeout=30)
        assert answer.status_code == 400, answer.text[:200]
        error = json.loads(answer.content)["error"]
        assert error["detail"] == {"line": 1, "column": 65, "depth_max": 64}
        assert "line 1 column 65" in error["message"]
