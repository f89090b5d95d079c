"""Both planes parse REDIS_URL in the same way."""

from __future__ import annotations

import pytest

from contract.redis_url import RedisUrlError, parse_redis_url


def test_one_server_is_named_by_its_url() -> None:
    for url in ("redis://h:6379/0", "rediss://:p@h/1?ssl_ca_certs=/ca.pem", "unix:///run/redis"):
        assert parse_redis_url(url).url == url
        assert not parse_redis_url(url).service
    assert parse_redis_url("rediss://h?ssl_ca_certs=/ca.pem").tls_files == {
        "ssl_ca_certs": "/ca.pem"
    }


def test_sentinel_names_its_service() -> None:
    address = parse_redis_url(
        "rediss+sentinel://us%40er:p%2Fw@one:1,[::1]:2,three/main/5"
        "?sentinel_password=s&ssl_ca_certs=/ca.pem"
    )
    assert (address.service, address.db, address.is_tls) == ("main", 5, True)
    assert address.sentinels == (("one", 1), ("::1", 2), ("three", 26_379))
    assert address.credentials == {"username": "us@er", "password": "p/w"}
    assert address.sentinel_credentials == {"password": "s"}
    assert address.tls_files == {"ssl_ca_certs": "/ca.pem"}
    assert "p/w" not in repr(address)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h", "unknown scheme"),
        ("redis+sentinel://h:1", "is not of the form"),
        ("redis+sentinel://h:1/main/x", "is not of the form"),
        ("redis+sentinel://h:x/main", "a sentinel 'h:x'"),
        ("redis+sentinel://h,/main", "a sentinel ''"),
        ("redis+sentinel://h/main?colour=red", "an unknown parameter 'colour'"),
    ],
)
def test_the_error_gives_the_reason(url: str, problem: str) -> None:
    with pytest.raises(RedisUrlError, match=problem):
        parse_redis_url(url)
