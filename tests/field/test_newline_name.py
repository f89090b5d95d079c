"""`modA\\n` is not a valid model name, and neither is a reserved word of a URL."""

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.test import Client

from apps.lib.errors import Invalid
from apps.models.models import ModelRole, RegisteredModel, valid_header, valid_name
from apps.models.versions import check_name
from contract.names import RESERVED_MODEL_NAMES, model_name_fault
from contract.routing import TableError, check_model
from controlplane.models import ApiToken
from tests.dataplane.worlds import model, table

INVALID_NAMES = ["modA\n", "\nmodA", "a b", "a/b", "", "-a", "a" * 101, "modA\r\n", "é"]


@pytest.mark.parametrize("name", [*INVALID_NAMES, *RESERVED_MODEL_NAMES])
def test_both_planes_refuse_an_invalid_name(name):
    assert model_name_fault(name)
    with pytest.raises(Invalid):
        check_name(name)
    with pytest.raises(TableError):
        check_model(name, model(), table(model()).clusters)


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_fields_of_names_check_the_whole_text(name):
    with pytest.raises(ValidationError):
        valid_name(name)


@pytest.mark.parametrize("name", ["x-unit\n", "\nx", "a b", ""])
def test_fields_of_headers_check_the_whole_text(name):
    with pytest.raises(ValidationError):
        valid_header(name)


@pytest.mark.parametrize("name", ["modA", "a", "7.x_-", "Stats", "a" * 100])
def test_valid_names_are_accepted(name):
    check_name(name)
    valid_name(name)
    check_model(name, model(), table(model()).clusters)


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["modA%0A", "stats", "sync"])
def test_the_api_registers_no_version_of_such_a_model(path):
    user = User.objects.create_user("anna")
    ModelRole.objects.create(user=user, role="admin")
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    response = client.post(
        f"/api/v1/models/{path}/versions/", {"uri": "models:/a/1"}, content_type="application/json"
    )
    assert response.status_code == 400
    assert "is not valid in a URL" in response.json()["error"]["message"]
    assert not RegisteredModel.objects.exists()
