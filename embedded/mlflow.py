"""The MLflow tracking server and model registry; slow to start, so nothing waits for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from embedded.part import MissingComponent, Part
from embedded.probes import http_ok


def part(artifacts: Path, port: int, database_url: str, env: Mapping[str, str]) -> Part:
    """The server on PostgreSQL, handing artifacts out itself."""
    if importlib.util.find_spec("mlflow") is None:
        raise MissingComponent("MLflow", "Run `uv sync --extra registry`.")
    store = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    argv = (
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--serve-artifacts", "--artifacts-destination", str(artifacts),
    )  # fmt: skip
    return Part(
        name="mlflow",
        argv=argv,
        env={
            **env,
            # By environment: an argument would show the password to every user of the machine.
            "MLFLOW_BACKEND_STORE_URI": store,
            # Job execution would start a dozen more processes that nothing here uses.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        needs=("postgres",),
        awaited=False,
        prepare=lambda: artifacts.mkdir(mode=0o700, exist_ok=True),
        ready=http_ok(port, "/health"),
        stop_group=True,
        # Its imports fill a core for half a minute; predictions and pages go first.
        niceness=5,
    )
