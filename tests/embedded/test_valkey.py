from __future__ import annotations

from pathlib import Path

import pytest

from embedded import valkey
from embedded.part import MissingComponent


def test_the_server_of_the_wheel_is_found() -> None:
    assert valkey.find_server({}).name == "valkey-server"


def test_the_setting_has_priority(tmp_path: Path) -> None:
    (tmp_path / "redis-server").touch()

    server = valkey.find_server({"INTERLOCK_REDIS_SERVER": str(tmp_path / "redis-server")})

    assert server == tmp_path / "redis-server"


def test_a_missing_server_is_named_with_its_remedy() -> None:
    with pytest.raises(MissingComponent, match=r"Redis server(.|\n)*apt-get install redis-server"):
        valkey.find_server({"INTERLOCK_REDIS_SERVER": "/nowhere"})


def test_it_listens_on_loopback_and_loses_no_data(tmp_path: Path) -> None:
    arguments = " ".join(valkey.part(tmp_path, 6379, "pw", {}, {}).argv)

    assert "--bind 127.0.0.1 --port 6379" in arguments
    assert "--appendonly yes" in arguments
    assert "--maxmemory-policy noeviction" in arguments


def test_the_password_is_in_a_private_file_and_not_an_argument(tmp_path: Path) -> None:
    part = valkey.part(tmp_path / "redis", 6379, "hidden", {}, {})
    assert part.prepare is not None
    part.prepare()

    config = tmp_path / "redis" / "valkey.conf"
    assert str(config) in part.argv
    assert "hidden" not in " ".join(part.argv)
    assert config.read_text() == "requirepass hidden\n"
    assert config.stat().st_mode & 0o777 == 0o600
