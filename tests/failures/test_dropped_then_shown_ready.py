"""After restarts a model was lost yet shown ready (seldon-core #5032 #5411).

What is shown is probed, not remembered: a server that forgot a version is found out by the next
question, and gets it again. The server is a real Triton.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.models.models import ServingCluster
from apps.models.states import DeploymentState as State
from apps.models.triton import endpoints_of
from tests.faults.ground import wait_until
from tests.models.onnx_zoo import KINDS, save
from tests.models.test_on_triton import cluster, place, reconcile, triton

__all__ = ["cluster", "triton"]

pytestmark = pytest.mark.django_db


def test_a_version_that_its_server_forgot_is_not_shown_ready(
    tmp_path: Path,
    cluster: ServingCluster,
) -> None:
    row = reconcile(place(cluster, "forgotten", save(KINDS["vector"], tmp_path)))
    assert row.state == State.READY
    (endpoint,) = endpoints_of(cluster)
    endpoint.unload(row.version)
    wait_until(lambda: endpoint.is_unloaded(row.version), 10, "Triton forgets it")
    assert reconcile(row).state == State.LOADING
    assert "lost" in row.reason
    assert reconcile(row).state == State.READY
