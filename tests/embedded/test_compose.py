"""The compose file starts the same processes as the embedded stack and contains no secret."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from dataplane import config
from embedded import interlock_parts
from embedded.ports import USUAL_PORTS
from embedded.state import ROOT, generate_secrets
from embedded.triton import CONTROL_HEADER, RESTRICTED_APIS

TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
# Compose sets these for the data plane only; the embedded stack sets them for all processes.
DATAPLANE_ONLY = {
    "INTERLOCK_CONTROL_URL",
    "INTERLOCK_INSTANCE_NAME",
    "INTERLOCK_BIND",
    "INTERLOCK_GRPC_BIND",
    "INTERLOCK_STATE_DIR",
    "INTERLOCK_OPERATOR_TOKEN",
}


def embedded_environment() -> dict[str, str]:
    return interlock_parts.environment(
        {}, ROOT / ".state", USUAL_PORTS, generate_secrets(), "postgresql://"
    )


def test_every_interlock_part_has_a_service() -> None:
    parts = {part.name for part in interlock_parts.parts(ROOT, USUAL_PORTS, {})}

    assert parts - {"bootstrap"} <= SERVICES.keys()


@pytest.mark.parametrize("service", ["web", "worker", "beat", "ingest", "migrate"])
def test_the_control_plane_has_the_embedded_variables(service: str) -> None:
    expected = {
        name for name in embedded_environment() if name.startswith(("INTERLOCK", "DATABASE"))
    }
    admin = {"INTERLOCK_ADMIN_USERNAME", "INTERLOCK_ADMIN_PASSWORD"}

    assert expected - admin - DATAPLANE_ONLY <= SERVICES[service]["environment"].keys()


def test_the_data_plane_has_its_variables_and_no_database() -> None:
    environment = SERVICES["dataplane"]["environment"].keys()

    assert environment == {variable.name for variable in config.variables()}


def test_no_secret_has_a_default() -> None:
    for variable in ("PASSWORD", "SECRET_KEY", "TOKEN"):
        uses = re.findall(rf"\$\{{([A-Z_]*{variable})(?![A-Z_])(.*?)\}}", TEXT)

        assert uses
        assert all(rest.startswith(":?") for _, rest in uses)


def test_triton_is_unprivileged_requires_the_token_and_is_on_its_own_network() -> None:
    triton = SERVICES["triton"]
    on_its_network = {name for name, s in SERVICES.items() if "models" in s.get("networks", [])}

    assert triton["networks"] == ["models"]
    assert yaml.safe_load(TEXT)["networks"]["models"]["internal"]
    assert on_its_network == {"triton", "dataplane", "web", "worker"}
    assert triton["read_only"]
    assert triton["cap_drop"] == ["ALL"]
    assert triton["volumes"] == ["repository:/data/repository"]
    recipe = (ROOT / "deploy/docker/triton.Dockerfile").read_text()
    start = (ROOT / "deploy/docker/start-triton.sh").read_text()
    assert re.search(r"^USER 10001$", recipe, re.MULTILINE)
    assert f"{RESTRICTED_APIS}:{CONTROL_HEADER}=" in start


def test_the_data_plane_has_no_triton_token_and_no_mlflow_login() -> None:
    env = embedded_environment()
    (embedded,) = (
        p for p in interlock_parts.parts(ROOT, USUAL_PORTS, env) if p.name == "dataplane"
    )

    for environment in (embedded.env, SERVICES["dataplane"]["environment"]):
        assert not {"INTERLOCK_TRITON_TOKEN", "MLFLOW_TRACKING_PASSWORD"} & environment.keys()
        assert not {"DATABASE_URL", "INTERLOCK_SECRET_KEY"} & environment.keys()
    # A new secret must not reach the data plane by accident.
    secret = {n for n in embedded.env if re.search("PASSWORD$|SECRET|TOKEN$", n)}
    assert secret == {"INTERLOCK_INSTANCE_TOKEN", "INTERLOCK_OPERATOR_TOKEN"}


def test_every_variable_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    explained = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT)) - {"INTERLOCK_TAG"}
    embedded = {name for name in embedded_environment() if name.startswith("INTERLOCK")}

    assert used | embedded <= explained


def test_every_service_restarts_and_most_have_a_health_check() -> None:
    without_check = {name for name, s in SERVICES.items() if "healthcheck" not in s}

    assert all("restart" in service for service in SERVICES.values())
    assert without_check == {"migrate", "beat", "ingest"}
