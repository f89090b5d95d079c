from dataclasses import fields
from pathlib import Path

import pytest

from dataplane.config import Config, ConfigError, Limits, Transport, load

BASE = {
    "INTERLOCK_BIND": "127.0.0.1:8090",
    "INTERLOCK_CONTROL_URL": "http://127.0.0.1:8000/",
    "INTERLOCK_INSTANCE_TOKEN": "secret",
    "INTERLOCK_INSTANCE_NAME": "dp-1",
    "INTERLOCK_STATE_DIR": "/tmp/x",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
}
OPTIONAL = [
    f.name
    for f in (*fields(Config), *fields(Limits))
    if f.name not in ("limits", "transport", "group", "grpc_bind", "redis_url")
    and f"INTERLOCK_{f.name.upper()}" not in BASE
]


def test_the_required_settings_are_read():
    config = load(BASE)
    assert (config.host, config.port) == ("127.0.0.1", 8090)
    assert config.control_url == "http://127.0.0.1:8000"
    assert config.state_dir == Path("/tmp/x")
    assert config.limits == Limits()


@pytest.mark.parametrize("name", sorted(BASE))
def test_a_missing_setting_is_named(name):
    with pytest.raises(ConfigError, match=name):
        load({key: value for key, value in BASE.items() if key != name})


@pytest.mark.parametrize("name", OPTIONAL)
def test_every_optional_setting_takes_effect(name):
    config = load({**BASE, f"INTERLOCK_{name.upper()}": "7"})
    holder = config if hasattr(config, name) else config.limits
    assert getattr(holder, name) == 7


def test_grpc_is_off_without_an_address():
    assert load(BASE).grpc_bind is None
    assert load({**BASE, "INTERLOCK_GRPC_BIND": "[::1]:8091"}).grpc_bind == ("::1", 8091)
    with pytest.raises(ConfigError, match="INTERLOCK_GRPC_BIND"):
        load({**BASE, "INTERLOCK_GRPC_BIND": "8091"})


@pytest.mark.parametrize("name", [field.name for field in fields(Transport)])
def test_every_setting_of_the_transport_takes_effect(name):
    config = load({**BASE, f"INTERLOCK_{name.upper()}": "7"})
    assert getattr(config.transport, name) == 7


@pytest.mark.parametrize("value", ["x", "-1", "0", "nan", "inf"])
def test_a_number_that_cannot_be_used_is_named(value):
    with pytest.raises(ConfigError, match="INTERLOCK_POLL_INTERVAL_S"):
        load({**BASE, "INTERLOCK_POLL_INTERVAL_S": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INTERLOCK_BIND", "8090"),
        ("INTERLOCK_BIND", "host:99999"),
        ("INTERLOCK_CONTROL_URL", "localhost:8000"),
        ("REDIS_URL", "127.0.0.1"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(name, value):
    with pytest.raises(ConfigError, match=name):
        load({**BASE, name: value})


def test_an_ipv6_address_may_be_bound():
    assert load({**BASE, "INTERLOCK_BIND": "[::1]:80"}).host == "::1"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("workers", "3", 3),
        ("lame_duck_s", "7", 7.0),
        ("staleness", "warn", "warn"),
        ("stale_after_s", "7", 7.0),
        ("operator_token", "secret", "secret"),
        ("worker_silent_s", "7", 7.0),
        ("worker_start_s", "7", 7.0),
        ("orphan_s", "7", 7.0),
    ],
)
def test_every_setting_of_the_group_takes_effect(name, value, expected):
    config = load({**BASE, f"INTERLOCK_{name.upper()}": value})
    assert getattr(config.group, name) == expected


def test_an_unknown_policy_is_named():
    with pytest.raises(ConfigError, match="INTERLOCK_STALENESS"):
        load({**BASE, "INTERLOCK_STALENESS": "maybe"})


def test_a_model_server_keeps_half_of_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert load(BASE).group.workers == 4
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert load(BASE).group.workers == 1


def test_an_address_for_grpc_that_cannot_be_used_is_named():
    with pytest.raises(ConfigError, match="INTERLOCK_GRPC_BIND must be host:port"):
        load({**BASE, "INTERLOCK_GRPC_BIND": "81"})
