"""A loaded version is deleted under load while the worker dies; the deletion still completes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.faults.artifact import write_artifact
from tests.faults.ground import BODY, Ground, wait_until
from tests.faults.load import Load, failures, report
from tests.faults.seed import MODEL


def register(ground: Ground, path: Path) -> int:
    """Upload a version and load it; return its number."""
    headers = {"Authorization": f"Bearer {ground.control.token}"}
    url = f"{ground.stack.urls.web}/api/v1/models/{MODEL}/versions/"
    files = {"file": (path.name, path.read_bytes())}
    row = httpx.post(url, headers=headers, files=files, timeout=30).raise_for_status().json()
    registration: dict[str, Any] = {}

    def is_settled() -> bool:
        registration.update(ground.control.get(f"registrations/{row['id']}/"))
        return bool(registration["is_settled"])

    wait_until(is_settled, 60, "it is registered")
    assert registration["error"] is None
    number = int(registration["version"])
    ground.control.post(f"models/{MODEL}/versions/{number}/deploy/")
    wait_until(lambda: status_of(ground, number) == 200, 60, "the version responds at its own path")
    return number


def status_of(ground: Ground, number: int) -> int:
    url = f"{ground.stack.urls.dataplane}/v2/models/{MODEL}/versions/{number}/infer"
    return httpx.post(url, content=BODY).status_code


def delete(ground: Ground, number: int) -> Any:
    """Delete a version after a minute without requests to it."""
    headers = {"Authorization": f"Bearer {ground.control.token}"}
    url = f"{ground.stack.urls.web}/api/v1/models/{MODEL}/versions/{number}/"
    answers: list[httpx.Response] = []

    def is_accepted() -> bool:
        answers.append(httpx.request("DELETE", url, headers=headers, json={"reason": "test"}))
        return answers[-1].status_code == 202

    wait_until(is_accepted, 90, "the deletion is accepted")
    assert {each.status_code for each in answers[:-1]} <= {409}
    return answers[-1].json()


def test_a_deleted_version_is_removed_everywhere_without_failures(
    ground: Ground, tmp_path: Path
) -> None:
    number = register(ground, write_artifact(tmp_path / "other.onnx", seed=9))
    places = [
        ground.state / "triton" / "repository" / f"{MODEL}.{number}",
        ground.state / "artifacts" / MODEL / str(number),
    ]
    assert all(place.is_dir() for place in places)
    path = f"models/{MODEL}/versions/{number}/"
    with Load(ground.port, ground.question) as load:
        assert delete(ground, number)["state"] == "deleting"
        killed_at = ground.kill("worker")
        wait_until(lambda: ground.control.get(path)["state"] == "deleted", 120, "it is deleted")
    report("A version deleted, the worker killed", load, killed_at)

    assert failures(load.answers) == {}
    assert not any(place.exists() for place in places)
    assert status_of(ground, number) == 404
    assert register(ground, write_artifact(tmp_path / "other.onnx", seed=9)) == number + 1
