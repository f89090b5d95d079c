from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.part import StackError
from embedded.ports import USUAL_PORTS, choose_ports, is_free, requested_ports


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_listening_port_is_not_free(taken_port: int) -> None:
    assert not is_free(taken_port)


def test_every_server_has_its_own_port(tmp_path: Path) -> None:
    chosen = choose_ports(tmp_path / "ports.json", {})

    assert chosen.keys() == USUAL_PORTS.keys()
    assert len(set(chosen.values())) == len(USUAL_PORTS)


def test_it_uses_the_ports_of_the_last_run(tmp_path: Path) -> None:
    first = choose_ports(tmp_path / "ports.json", {}, prefer_usual=False)

    second = choose_ports(tmp_path / "ports.json", {}, prefer_usual=False)

    assert second == first


def test_a_port_of_the_last_run_is_skipped_if_it_is_in_use(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "ports.json").write_text(json.dumps({"web": taken_port}))

    chosen = choose_ports(tmp_path / "ports.json", {})

    assert chosen["web"] != taken_port


def test_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{")

    assert choose_ports(tmp_path / "ports.json", {}).keys() == USUAL_PORTS.keys()


def test_a_requested_port_is_used(tmp_path: Path) -> None:
    free = choose_ports(tmp_path / "a.json", {}, prefer_usual=False)["redis"]

    assert choose_ports(tmp_path / "b.json", {"web": free})["web"] == free


def test_a_requested_port_in_use_is_an_error(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(StackError, match=f"Port {taken_port}.*INTERLOCK_PORT_WEB or --port-web"):
        choose_ports(tmp_path / "ports.json", {"web": taken_port})


def test_an_option_overrides_the_environment() -> None:
    environ = {"INTERLOCK_PORT_WEB": "9000", "INTERLOCK_PORT_TRITON_HTTP": "9001"}

    assert requested_ports({"web": 7000, "redis": None}, environ) == {
        "web": 7000,
        "triton_http": 9001,
    }


@pytest.mark.parametrize("value", ["web", "0", "65536", "-1"])
def test_an_invalid_port_is_refused(value: str) -> None:
    with pytest.raises(StackError, match="INTERLOCK_PORT_WEB"):
        requested_ports({}, {"INTERLOCK_PORT_WEB": value})
