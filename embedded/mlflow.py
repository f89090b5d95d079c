"""The MLflow tracking server and model registry; it starts slowly, so no part waits for it.

It requires a login: a user who can set an alias in MLflow can start a rollout in Interlock.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from embedded.part import MissingComponent, Part
from embedded.probes import http_ok

USERNAME = "interlock"
# Every account can read; its creator grants further permissions.
AUTH_CONFIG = """[mlflow]
default_permission = READ
database_uri = {store}
admin_username = {username}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


def part(
    artifacts: Path, port: int, database_url: str, password: str, env: Mapping[str, str]
) -> Part:
    """Return the server's part: metadata in PostgreSQL, artifacts served by itself."""
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("flask_wtf") is None:
        raise MissingComponent("MLflow with its logins", "Run `uv sync --extra registry`.")
    store = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    argv = (
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--serve-artifacts", "--artifacts-destination", str(artifacts),
        "--app-name", "basic-auth",
    )  # fmt: skip
    auth_config = artifacts.with_name("mlflow-auth.ini")

    def prepare() -> None:
        artifacts.mkdir(mode=0o700, exist_ok=True)
        auth_config.touch(mode=0o600)
        # A percent sign starts a reference in this file.
        uri = store.replace("%", "%%")
        auth_config.write_text(AUTH_CONFIG.format(store=uri, username=USERNAME))

    return Part(
        name="mlflow",
        argv=argv,
        env={
            **env,
            # In the environment: every user of the machine can read arguments.
            "MLFLOW_BACKEND_STORE_URI": store,
            "MLFLOW_AUTH_CONFIG_PATH": str(auth_config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            # Signs the forms of its own pages.
            "MLFLOW_FLASK_SERVER_SECRET_KEY": hashlib.sha256(password.encode()).hexdigest(),
            # Job execution would start a dozen more processes that are not used.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        needs=("postgres",),
        awaited=False,
        prepare=prepare,
        ready=http_ok(port, "/health"),
        stop_group=True,
        # Its imports use a core for half a minute; predictions and pages have priority.
        niceness=5,
    )
