"""A key for one model allows no other, over any protocol and for any size of request."""

from tests.attacks.tenancy import INFER, PLAIN, infer_message
from tests.dataplane.groups import ROW
from tests.dataplane.worlds import body

LARGE = 3_000


async def test_a_key_of_another_model_is_refused_everywhere(door):
    for path, document in (
        (INFER, body(ROW)),
        ("/v2/models/sums/versions/1/infer", body(ROW)),
        (INFER, body(*[ROW] * LARGE)),
        ("/predict", PLAIN),
        ("/predict", {**PLAIN, "data": [ROW] * LARGE}),
        # The key may not reveal whether a model exists either.
        ("/v2/models/nothing/infer", body(ROW)),
    ):
        refused = await door.post(path, document, "elsewhere")
        assert (refused.status_code, refused.json()["code"]) == (403, "model_not_allowed"), path
    for rows in (1, LARGE):
        message = infer_message(rows)
        assert await door.call("ModelInfer", message, x_api_key="elsewhere") == "PERMISSION_DENIED"


async def test_a_key_for_the_model_and_one_for_all_models_are_accepted(door):
    for key in ("limited", "shop"):
        assert (await door.post(INFER, body(ROW), key)).status_code == 200
        assert (await door.post("/predict", PLAIN, key)).status_code == 200
        assert await door.call("ModelInfer", infer_message(), x_api_key=key) == "OK"


async def test_outcomes_of_a_model_need_a_key_of_that_model(door):
    outcome = {"metric": "accuracy", "value": 1, "request_id": await door.request_id("limited")}
    refused = await door.post("/outcomes", outcome, "elsewhere")
    assert (refused.status_code, refused.json()["code"]) == (403, "foreign_outcome")
    # Both keys belong to the tenant.
    assert (await door.post("/outcomes", outcome, "limited")).status_code == 202
    assert (await door.post("/outcomes", outcome, "shop")).status_code == 202
