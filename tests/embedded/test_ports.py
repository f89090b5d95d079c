from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.part import StackError
from embedded.ports import USUAL_PORTS, asked_ports, choose_ports, is_free


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_listening_port_is_not_free(taken_port: int) -> None:
    assert not is_free(taken_port)


def test_every_server_gets_a_port_of_its_own(tmp_path: Path) -> None:
    chosen = choose_ports(tmp_path / "ports.json", {})

    assert chosen.keys() == USUAL_PORTS.keys()
    assert len(set(chosen.values())) == len(USUAL_PORTS)


def test_it_remembers_the_ports_of_the_last_time(tmp_path: Path) -> None:
    first = choose_ports(tmp_path / "ports.json", {}, prefer_usual=False)

    second = choose_ports(tmp_path / "ports.json", {}, prefer_usual=False)

    assert second == first


def test_a_remembered_port_yields_when_it_is_taken(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "ports.json").write_text(json.dumps({"web": taken_port}))

    chosen = choose_ports(tmp_path / "ports.json", {})

    assert chosen["web"] != taken_port


def test_a_damaged_memory_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{")

    assert choose_ports(tmp_path / "ports.json", {}).keys() == USUAL_PORTS.keys()


def test_a_port_that_was_asked_for_is_used(tmp_path: Path) -> None:
    free = choose_ports(tmp_path / "a.json", {}, prefer_usual=False)["redis"]

    assert choose_ports(tmp_path / "b.json", {"web": free})["web"] == free


def test_it_refuses_when_the_port_asked_for_is_taken(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(StackError, match=f"Port {taken_port}.*INTERLOCK_PORT_WEB or --port-web"):
        choose_ports(tmp_path / "ports.json", {"web": taken_port})


def test_an_option_goes_before_the_environment() -> None:
    environ = {"INTERLOCK_PORT_WEB": "9000", "INTERLOCK_PORT_TRITON_HTTP": "9001"}

    assert asked_ports({"web": 7000, "redis": None}, environ) == {"web": 7000, "triton_http": 9001}


@pytest.mark.parametrize("value", ["web", "0", "65536", "-1"])
def test_it_refuses_what_is_not_a_port(value: str) -> None:
    with pytest.raises(StackError, match="INTERLOCK_PORT_WEB"):
        asked_ports({}, {"INTERLOCK_PORT_WEB": value})
