"""Proposed settings from the durations of a trial, and where they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.test import Client

from apps.models.artifacts import inspect_onnx
from apps.models.models import RegisteredModel
from apps.models.suggested_settings import propose
from tests.models.onnx_zoo import KINDS
from tests.models.onnx_zoo import save as save_kind
from tests.models.test_artifacts import save
from tests.rollouts.factories import make_model, make_version


@pytest.mark.parametrize(
    ("trial_ms", "timeout_ms", "rows"),
    [
        ({"1": 0.1, "32": 1.0}, 1_000, 32),
        ({"1": 20.0, "32": 640.0}, 1_000, 8),
        ({"1": 100.0, "32": 3_200.0}, 1_000, 2),
        ({"1": 500.0, "32": 16_000.0}, 5_000, 2),
        # A batch that takes about as long as one row gets the maximum size.
        ({"1": 200.0, "32": 260.0}, 2_000, 32),
        ({"1": 130.0}, 2_000, None),
        ({"1": 1e9, "32": 1e9}, 600_000, 1),
        # A clock with low resolution.
        ({"1": 0.2, "32": 0.1}, 1_000, 32),
    ],
)
def test_timeout_and_batch_follow_from_the_durations(trial_ms, timeout_ms, rows):
    proposal = propose(trial_ms)
    assert proposal is not None
    assert (proposal.timeout_ms, proposal.max_batch_size) == (timeout_ms, rows)


@pytest.mark.parametrize("trial_ms", [None, {}, {"32": 1.0}])
def test_without_a_trial_nothing_is_proposed(trial_ms):
    assert propose(trial_ms) is None


def test_a_trial_times_one_row_and_many(tmp_path: Path) -> None:
    took_ms = inspect_onnx(save(tmp_path / "m.onnx", ["n", 4])).trial_ms
    assert set(took_ms) == {"1", "32"}
    assert all(0 < each < 1_000 for each in took_ms.values())


def test_a_model_without_a_batch_dimension_is_timed_by_the_request(tmp_path: Path) -> None:
    assert set(inspect_onnx(save_kind(KINDS["fixed"], tmp_path)).trial_ms) == {"1"}


@pytest.mark.django_db
def test_a_proposal_is_shown_with_the_settings_and_changes_nothing(admin_client: Client) -> None:
    version = make_version(make_model(), 9, trial_ms={"1": 100.0, "32": 3_200.0})
    name = version.model.name
    RegisteredModel.objects.filter(name=name).update(timeout_ms=700)
    page = admin_client.get(f"/models/{name}/versions/{version.number}/").content.decode()
    page = " ".join(page.split())
    assert "One row took 100 ms, 32 rows at once 3200 ms." in page
    assert "timeout 1,000 ms (now 700), batches of at most 2 rows (now 32)" in page
    answer = admin_client.get(f"/api/v1/models/{name}/versions/{version.number}/").json()
    assert answer["proposal"] == {
        "timeout_ms": 1_000, "max_batch_size": 2, "row_ms": 100.0, "rows": 32, "rows_ms": 3_200.0,
    }  # fmt: skip
    assert RegisteredModel.objects.get(name=name).timeout_ms == 700


@pytest.mark.django_db
def test_a_version_without_a_trial_has_no_proposal(admin_client: Client) -> None:
    version = make_version(make_model(), 9)
    path = f"{version.model.name}/versions/{version.number}/"
    assert admin_client.get(f"/api/v1/models/{path}").json()["proposal"] is None
    assert "<dt>Trial</dt>" not in admin_client.get(f"/models/{path}").content.decode()
