"""The parts that are Interlock's own processes, and their environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from embedded import mlflow, valkey
from embedded.part import Part
from embedded.probes import http_ok
from embedded.state import Secrets

ADMIN_USERNAME = "admin"
# Variables that the data plane must not have, as it serves unauthenticated clients.
CONTROL_ONLY = (
    "DATABASE_URL",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "INTERLOCK_ADMIN_PASSWORD",
    "INTERLOCK_SECRET_KEY",
    "INTERLOCK_TRITON_TOKEN",
)


def environment(
    base: Mapping[str, str],
    state: Path,
    ports: Mapping[str, int],
    secrets: Secrets,
    database_url: str,
) -> dict[str, str]:
    """Return the environment of all Interlock processes."""
    triton = f"http://127.0.0.1:{ports['triton_http']}"
    dataplane = f"127.0.0.1:{ports['dataplane']}"
    return {
        **base,
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey.url(ports["redis"], secrets.redis_password),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        "MLFLOW_TRACKING_USERNAME": mlflow.USERNAME,
        "MLFLOW_TRACKING_PASSWORD": secrets.mlflow_password,
        "INTERLOCK_MLFLOW_LOGIN_REQUIRED": "1",
        "INTERLOCK_SECRET_KEY": secrets.secret_key,
        "INTERLOCK_INSTANCE_TOKEN": secrets.instance_token,
        "INTERLOCK_OWN_TOKENS_REQUIRED": base.get("INTERLOCK_OWN_TOKENS_REQUIRED", "1"),
        "INTERLOCK_DEBUG": "0",
        "INTERLOCK_ALLOWED_HOSTS": "127.0.0.1,localhost",
        "INTERLOCK_TRITON_URLS": triton,
        "INTERLOCK_TRITON_TOKEN": secrets.triton_token,
        "INTERLOCK_MODEL_REPOSITORY": str(state / "triton" / "repository"),
        "INTERLOCK_ARTIFACT_DIR": str(state / "artifacts"),
        "INTERLOCK_DATAPLANE_URL": f"http://{dataplane}",
        "INTERLOCK_ADMIN_USERNAME": ADMIN_USERNAME,
        "INTERLOCK_ADMIN_PASSWORD": secrets.admin_password,
        "INTERLOCK_CONTROL_URL": f"http://127.0.0.1:{ports['web']}",
        # The user's setting wins: there may be a proxy in front.
        "INTERLOCK_PUBLIC_URL": base.get(
            "INTERLOCK_PUBLIC_URL", f"http://127.0.0.1:{ports['web']}"
        ),
        # No webhook may reach a server of the stack, whatever the allow-list contains.
        "INTERLOCK_OWN_SERVICES": ",".join(f"127.0.0.1:{port}" for port in ports.values()),
        "INTERLOCK_OPERATOR_TOKEN": base.get("INTERLOCK_OPERATOR_TOKEN") or secrets.operator_token,
        "INTERLOCK_INSTANCE_NAME": "local",
        "INTERLOCK_BIND": dataplane,
        "INTERLOCK_GRPC_BIND": f"127.0.0.1:{ports['dataplane_grpc']}",
        "INTERLOCK_STATE_DIR": str(state / "dataplane"),
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        "PYTHONUNBUFFERED": "1",
    }


def parts(state: Path, ports: Mapping[str, int], env: Mapping[str, str]) -> list[Part]:
    """Return the parts in order of start; the data plane does not wait for the control plane."""
    python = sys.executable
    web = (
        python, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1",
        "--port", str(ports["web"]), "--workers", "1", "--blocking-threads", "4",
        "controlplane.wsgi:application",
    )  # fmt: skip
    worker = (python, "-m", "controlplane.worker")
    beat = (python, "-m", "controlplane.beat")
    # The only consumer has a fixed name, so that after a restart it continues at once with its
    # pending entries; with a new name it would have to wait until it may claim them.
    ingest = (python, "manage.py", "ingest", "--consumer", "local")
    stored = ("postgres", "redis", "migrate")

    def make_directories() -> None:
        (state / "artifacts").mkdir(mode=0o700, exist_ok=True)
        (state / "dataplane").mkdir(mode=0o700, exist_ok=True)

    return [
        Part(
            name="dataplane",
            argv=(python, "-m", "dataplane"),
            env={name: value for name, value in env.items() if name not in CONTROL_ONLY},
            needs=("redis", "triton"),
            # Bootstrap publishes the first table; there is nothing to serve before.
            ready_after=("bootstrap", "web"),
            reports_to=("web",),
            prepare=make_directories,
            outlived=True,
            ready=http_ok(ports["dataplane"], "/v2/health/ready"),
        ),
        Part(
            name="migrate",
            argv=(python, "manage.py", "migrate", "--noinput", "--skip-checks"),
            env=env,
            needs=("postgres", "redis"),
            once=True,
            prepare=make_directories,
        ),
        Part(
            name="bootstrap",
            argv=(python, "manage.py", "bootstrap", "--skip-checks"),
            env=env,
            needs=stored,
            once=True,
        ),
        Part(
            name="web",
            argv=web,
            env=env,
            needs=stored,
            ready=http_ok(ports["web"], "/healthz/ready"),
        ),
        Part(name="worker", argv=worker, env=env, needs=stored, ready_line=" ready."),
        Part(
            name="beat",
            argv=beat,
            env=env,
            needs=stored,
            ready_line="is starting",
        ),
        Part(name="ingest", argv=ingest, env=env, needs=stored),
    ]
