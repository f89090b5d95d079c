"""The egress policy; only names that every machine resolves are looked up."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from apps.lib.egress import NEVER, NOT_LISTED, AllowList, EgressPolicy, OwnService

EVERY_NETWORK = AllowList.parse(["0.0.0.0/0", "::/0"])


@pytest.mark.parametrize(
    ("machine", "by_default", "with_all_listed"),
    [
        ("93.184.215.14", "", ""),
        ("2606:4700:4700::1111", "", ""),
        ("127.0.0.1", NOT_LISTED, ""),
        ("::1", NOT_LISTED, ""),
        ("10.1.2.3", NOT_LISTED, ""),
        ("::ffff:10.1.2.3", NOT_LISTED, ""),
        ("::ffff:127.0.0.1", NOT_LISTED, ""),
        ("64:ff9b::a01:203", NOT_LISTED, ""),
        ("2002:a01:203::", NOT_LISTED, ""),
        ("fd12::1", NOT_LISTED, ""),
        ("fec0::1", NOT_LISTED, ""),
        ("100.64.0.1", NOT_LISTED, ""),
        ("198.18.0.1", NOT_LISTED, ""),
        ("169.254.169.254", NEVER, NEVER),
        ("::ffff:169.254.169.254", NEVER, NEVER),
        ("64:ff9b::a9fe:a9fe", NEVER, NEVER),
        ("64:ff9b:1::a9fe:a9fe", NEVER, NEVER),
        ("2002:a9fe:a9fe::", NEVER, NEVER),
        ("fe80::1", NEVER, NEVER),
        ("fd00:ec2::254", NEVER, NEVER),
        ("100.100.100.200", NEVER, NEVER),
        ("0.0.0.0", NEVER, NEVER),
        ("::", NEVER, NEVER),
        ("255.255.255.255", NEVER, NEVER),
        ("224.0.0.1", NEVER, NEVER),
    ],
)
def test_which_addresses_are_called(machine: str, by_default: str, with_all_listed: str) -> None:
    address = ip_address(machine)
    assert EgressPolicy().refusal(machine, address, 80) == by_default
    assert EgressPolicy(EVERY_NETWORK).refusal(machine, address, 80) == with_all_listed


def test_a_listed_name_allows_its_machine_and_no_other() -> None:
    policy = EgressPolicy(AllowList.parse(["hooks.internal"]))

    assert policy.refusal("Hooks.internal", ip_address("10.0.0.5"), 80) == ""
    assert policy.refusal("other.internal", ip_address("10.0.0.5"), 80) == NOT_LISTED
    assert policy.refusal("hooks.internal", ip_address("169.254.169.254"), 80) == NEVER


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "::1", "127.9.9.9"]
)
def test_an_own_service_is_never_called_in_any_notation(host: str) -> None:
    policy = EgressPolicy(EVERY_NETWORK, (OwnService("Triton", "localhost", 8001),))

    machine = ip_address(socket.getaddrinfo(host, 8001)[0][4][0])
    assert "own service Triton" in policy.refusal(host, machine, 8001)
    # Other receivers of this machine have ports of their own.
    assert policy.refusal(host, machine, 9000) == ""


def test_a_service_on_a_machine_of_its_own_keeps_its_other_ports_too() -> None:
    triton = OwnService("Triton", "10.0.0.5", 8000, has_more_ports=True)
    policy = EgressPolicy(EVERY_NETWORK, (triton, OwnService("MLflow", "10.0.0.6", 5000)))

    assert policy.refusal("x.example", ip_address("10.0.0.5"), 8001)
    assert policy.refusal("x.example", ip_address("::ffff:10.0.0.6"), 5000)
    assert policy.refusal("x.example", ip_address("10.0.0.6"), 80) == ""


def test_a_service_behind_a_shared_proxy_is_identified_by_its_name() -> None:
    web = OwnService("web UI", "interlock.example", 443, by_name_only=True)
    policy = EgressPolicy(EVERY_NETWORK, (web,))

    assert policy.refusal("interlock.example", ip_address("93.184.215.14"), 443)
    assert policy.refusal("hooks.example", ip_address("93.184.215.14"), 443) == ""


@pytest.mark.parametrize("item", ["10.0.0.1/8", "300.0.0.0/8", "http://x", "a b"])
def test_an_invalid_network_address_or_name_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|is not a network|has host bits"):
        AllowList.parse([item])
