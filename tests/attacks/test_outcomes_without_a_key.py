"""If keys are required, outcomes need one too: forged labels would decide rollouts."""

OUTCOME = {"unit_id": "u1", "metric": "accuracy", "value": 0}


async def test_an_unauthenticated_client_sends_no_outcomes(door):
    # Small bodies are read at once, large ones elsewhere.
    for document in (OUTCOME, [OUTCOME] * 1_000):
        for key in (None, "", "guessed"):
            refused = await door.post("/outcomes", document, key)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert (await door.post("/outcomes", document, "shop")).status_code == 202
