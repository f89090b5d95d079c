"""After restarts a model was lost yet shown ready (seldon-core #5032 #5411).

Here the state is probed, not remembered: the next probe detects a server that has lost a version,
and the version is loaded again. The server is a real Triton.
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


def test_a_version_lost_by_its_server_is_not_shown_ready(
    tmp_path: Path,
    cluster: ServingCluster,
) -> None:
    row = reconcile(place(cluster, "forgotten", save(KINDS["vector"], tmp_path)))
    assert row.state == State.READY
    (endpoint,) = endpoints_of(cluster)
    endpoint.unload(row.version)
    wait_until(lambda: endpoint.is_unloaded(row.version), 10, "Triton unloads it")
    assert reconcile(row).state == State.LOADING
    assert "lost" in row.reason
    assert reconcile(row).state == State.READY
