"""Parses REDIS_URL, for both planes: one server, or a primary found through Redis Sentinel.

    redis://user:password@host:6379/0           rediss: with TLS, which is verified
    redis+sentinel://user:password@host1:26379,host2:26379/SERVICE/0?sentinel_password=…
    rediss+sentinel://…                         the same with TLS, to sentinels and servers alike

The parameters `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` name PEM files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix")
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26_379
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
SENTINEL_KEYS = ("sentinel_username", "sentinel_password")
NO_CLUSTER = (
    "REDIS_URL points to a Redis Cluster, which is not supported: one command reads several "
    "streams, and one pipeline writes several keys, which a cluster keeps on different servers. "
    "Use a single server, or Redis Sentinel (redis+sentinel://host:26379/SERVICE/0)."
)


class RedisUrlError(ValueError):
    """A URL that cannot be used; the message gives the reason and contains no password."""


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is; with a `service`, the sentinels name the server, otherwise `url`."""

    url: str = field(repr=False)
    service: str = ""
    sentinels: tuple[tuple[str, int], ...] = ()
    db: int = 0
    # For the servers.
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    # For the sentinels.
    sentinel_credentials: dict[str, str] = field(default_factory=dict, repr=False)
    is_tls: bool = False
    tls_files: dict[str, str] = field(default_factory=dict)


def parse_redis_url(url: str) -> RedisAddress:
    """Parse `url`. Raises RedisUrlError."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    files = {name: query[name] for name in TLS_FILES if name in query}
    if parts.scheme in SCHEMES:
        return RedisAddress(url, is_tls=parts.scheme == "rediss", tls_files=files)
    if parts.scheme not in SENTINEL_SCHEMES:
        expected = ", ".join((*SCHEMES, *SENTINEL_SCHEMES))
        raise RedisUrlError(f"has an unknown scheme {parts.scheme!r}; expected one of {expected}")
    unknown = query.keys() - {*TLS_FILES, *SENTINEL_KEYS}
    if unknown:
        raise RedisUrlError(f"has an unknown parameter {min(unknown)!r}")
    login, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not service or (db and not db.isdecimal()):
        raise RedisUrlError("is not of the form redis+sentinel://host:26379,host:26379/SERVICE/0")
    username, _, password = login.partition(":")
    return RedisAddress(
        url,
        service=unquote(service),
        sentinels=tuple(_sentinel(host) for host in hosts.split(",")),
        db=int(db or 0),
        credentials=_without_empty(username=unquote(username), password=unquote(password)),
        sentinel_credentials=_without_empty(
            username=query.get("sentinel_username", ""),
            password=query.get("sentinel_password", ""),
        ),
        is_tls=parts.scheme == "rediss+sentinel",
        tls_files=files,
    )


def _sentinel(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or SENTINEL_PORT
    except ValueError:
        host = None
    if not host:
        raise RedisUrlError(f"has a sentinel {text!r} that is not host:port")
    return host, port


def _without_empty(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}
