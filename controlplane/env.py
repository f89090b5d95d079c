"""The only reader of the control plane's environment; an invalid value is an error.

A reader that gets `help` declares the variable: documents, `.env.example` and docker-compose.yml
are made from what is declared (`embedded.settings_pages`).
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from psycopg import Error as PsycopgError
from psycopg.conninfo import conninfo_to_dict

from apps.lib.egress import AllowList, OwnService
from contract.redis_url import RedisUrlError, parse_redis_url
from contract.variables import Variable

# The parts of a database URL that Django has a name for: Django's name and libpq's.
DATABASE_PARTS = {
    "NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port",
}  # fmt: skip
SECRET_LENGTH_MIN = 32
DIFFERENT_MIN = 10
# A Redis URL with this parameter defines the verification of the server itself.
CERT_PARAMETER = "ssl_cert_reqs="
# The minimum of Standard Webhooks.
WEBHOOK_KEY_BYTES_MIN = 24
WELL_KNOWN = ("changeme", "change-me", "change_me", "insecure", "password", "example", "interlock")
GENERATOR = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
MAIL_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


# Every variable that the settings declare, by its name, in their order.
DECLARED: dict[str, Variable] = {}


class SettingError(RuntimeError):
    """An environment variable is missing or invalid."""


def declare(
    name: str, default: object, help: str, unit: str = "", *, is_secret: bool = False
) -> None:
    """Record a declaration. `default` None: the variable is required."""
    is_required = default is None
    DECLARED[name] = Variable(
        name, "" if is_required else str(default), help, unit, is_required, is_secret
    )


def text(
    name: str,
    default: str | None = None,
    help: str = "",
    unit: str = "",
    *,
    is_secret: bool = False,
) -> str:
    """Return the variable, or `default` where it is unset or empty.

    Raises SettingError where there is no default either.
    """
    if help:
        declare(name, default, help, unit, is_secret=is_secret)
    value = os.environ.get(name) or default
    if value is None:
        raise SettingError(f"{name} is not set")
    return value


def flag(name: str, default: bool, help: str = "") -> bool:
    """Parse a boolean variable. Raises SettingError."""
    if help:
        declare(name, int(default), help)
    value = os.environ.get(name)
    if value is None or value == "":
        return default
    if value.lower() in {"1", "true", "yes", "on"}:
        return True
    if value.lower() in {"0", "false", "no", "off"}:
        return False
    raise SettingError(f"{name} is {value!r}; expected 1 or 0")


def integer(name: str, default: int, help: str = "", unit: str = "", *, at_least: int = 0) -> int:
    """Parse a whole number that is at least `at_least`. Raises SettingError."""
    if help:
        declare(name, default, help, unit)
    value = os.environ.get(name)
    if value is None or value == "":
        return default
    try:
        number = int(value)
    except ValueError as error:
        raise SettingError(f"{name} is {value!r}; expected a whole number") from error
    if number < at_least:
        raise SettingError(f"{name} is {number}; the minimum is {at_least}")
    return number


def days(name: str, default: int, help: str = "", *, at_least: int) -> int:
    """Parse a number of days: 0 (for ever) or at least `at_least`. Raises SettingError."""
    number = integer(name, default, help, "days")
    if 0 < number < at_least:
        raise SettingError(f"{name} is {number}; expected 0 (for ever) or at least {at_least}")
    return number


def choice(name: str, default: str, choices: tuple[str, ...], help: str = "") -> str:
    """Return one of `choices`. Raises SettingError."""
    if help:
        declare(name, default, f"{help}: {', '.join(choices)}")
    value = os.environ.get(name) or default
    if value not in choices:
        raise SettingError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    return value


def items(name: str, default: str = "", help: str = "") -> list[str]:
    """Return a comma-separated variable as a list without empty items."""
    value = text(name, default, help, "comma-separated")
    return [item.strip() for item in value.split(",") if item.strip()]


def service_url(name: str, help: str = "") -> str:
    """Return the URL of an HTTP service, or "" if it is not set. Raises SettingError."""
    if help:
        declare(name, "", help, "URL")
    value = os.environ.get(name, "").strip()
    try:
        url = urlsplit(value)
        is_valid = url.scheme in {"http", "https"} and bool(url.hostname)
    except ValueError:
        is_valid = False
    if value and not is_valid:
        # The URL may contain a password, so the message does not show it.
        raise SettingError(f"{name} is not a valid http: or https: URL")
    return value


def secret(name: str, default: str | None = None, help: str = "") -> str:
    """Return a secret. Raises SettingError if it is weak.

    A secret has at least SECRET_LENGTH_MIN characters, at least DIFFERENT_MIN different ones, and
    contains no well-known default. The message never contains the value.
    """
    if help:
        declare(name, default, help, is_secret=True)
    value = os.environ.get(name) or default
    if value == "":
        return value
    problem = ""
    if value is None:
        problem = "is not set"
    elif len(value) < SECRET_LENGTH_MIN:
        problem = f"has {len(value)} characters; the minimum is {SECRET_LENGTH_MIN}"
    elif len(set(value)) < DIFFERENT_MIN:
        problem = f"has {len(set(value))} different characters; the minimum is {DIFFERENT_MIN}"
    elif word := next((word for word in WELL_KNOWN if word in value.lower()), ""):
        problem = f"contains {word!r}, a well-known default"
    if problem or value is None:
        raise SettingError(f"{name} {problem}. Generate a secret with `{GENERATOR}`")
    return value


def allow_list(name: str, help: str = "") -> AllowList:
    """Parse a comma-separated list of networks, addresses and host names. Raises SettingError."""
    try:
        return AllowList.parse(items(name, "", help))
    except ValueError as error:
        raise SettingError(f"{name}: {error}") from error


def own_services(name: str, help: str = "") -> list[OwnService]:
    """Parse a comma-separated list of `host:port`, or `host` for all ports. Raises SettingError."""
    services = []
    for item in items(name, "", help):
        try:
            url = urlsplit(f"//{item}")
            host, port = url.hostname, url.port
        except ValueError as error:
            raise SettingError(f"{name}: {item!r} is not a valid host:port: {error}") from error
        if not host or url.netloc != item:
            raise SettingError(f"{name}: {item!r} is not a valid host:port")
        services.append(OwnService(item, host, port))
    return services


def webhook_secret(name: str, help: str = "") -> str:
    """Return the signing key of webhooks, `whsec_` and base64, or "". Raises SettingError."""
    if help:
        declare(name, "", help, is_secret=True)
    value = os.environ.get(name, "").strip()
    try:
        key = base64.b64decode(value.removeprefix("whsec_"), validate=True)
    except ValueError:
        # The value is a secret, so the message does not show it.
        raise SettingError(f"{name} is not whsec_ followed by a key in base64") from None
    if value and (len(key) < WEBHOOK_KEY_BYTES_MIN or len(set(key)) < DIFFERENT_MIN):
        raise SettingError(
            f"{name} has a weak key of {len(key)} bytes; "
            f"expected at least {WEBHOOK_KEY_BYTES_MIN} random bytes in base64"
        )
    return value


def public_url(name: str, default: str, help: str = "") -> str:
    """Return a URL for links on pages, without trailing slash, user and password."""
    if help:
        declare(name, "", help, "URL")
    url = urlsplit((os.environ.get(name) or default).rstrip("/"))
    if url.scheme not in {"http", "https"}:
        if not os.environ.get(name):
            return ""
        raise SettingError(f"{name} is {url.geturl()!r}; expected an http: or https: URL")
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def mail_server(name: str, help: str = "") -> dict[str, Any]:
    """Parse an smtp:, smtps: or smtp+starttls: URL into the arguments of Django's backend."""
    if help:
        declare(name, "", help, "URL", is_secret=True)
    value = os.environ.get(name, "")
    if not value:
        return {}
    url = urlsplit(value)
    if url.scheme not in MAIL_PORTS or not url.hostname:
        raise SettingError(
            f"{name} is not of the form smtp://host:port, smtp+starttls://user:password@host "
            "or smtps://user:password@host"
        )
    try:
        port = url.port or MAIL_PORTS[url.scheme]
    except ValueError as error:
        raise SettingError(f"{name} has an invalid port") from error
    return {
        "host": url.hostname,
        "port": port,
        "username": unquote(url.username or ""),
        "password": unquote(url.password or ""),
        "use_tls": url.scheme == "smtp+starttls",
        "use_ssl": url.scheme == "smtps",
    }


# A session that a firewall or a load balancer dropped silently ends after FORGOTTEN_S seconds, not
# after the system's 15 minutes: by keepalive probes while idle, by a timeout for sent bytes.
PROBE_S, PROBES_MAX, FORGOTTEN_S = 5, 3, 15
PROBED: dict[str, object] = {
    "keepalives_idle": FORGOTTEN_S,
    "keepalives_interval": PROBE_S,
    "keepalives_count": PROBES_MAX,
    "tcp_user_timeout": FORGOTTEN_S * 1_000,
}

# The same for Celery's connections to Redis; other connections to Redis have their own timeouts.
KEEPALIVE: dict[int, int] = {
    getattr(socket, option): value
    for option, value in {
        "TCP_KEEPIDLE": FORGOTTEN_S,
        "TCP_KEEPINTVL": PROBE_S,
        "TCP_KEEPCNT": PROBES_MAX,
    }.items()
    if hasattr(socket, option)
}


def database(name: str, default: str, help: str = "") -> dict[str, object]:
    """Return Django's database settings from a libpq URL. Raises SettingError.

    Multiple hosts, socket directories and all libpq parameters are supported: `sslmode`,
    `sslrootcert`, `target_session_attrs`, `connect_timeout` and so on.
    """
    value = text(name, default, help, "URL", is_secret=True)
    try:
        parameters = conninfo_to_dict(value)
    except PsycopgError as error:
        raise SettingError(f"{name}: {str(error).strip()}") from None
    if urlsplit(value).scheme not in {"postgresql", "postgres"} or not parameters.get("dbname"):
        raise SettingError(f"{name} is not of the form postgresql://user:password@host:port/name")
    named = {name: str(parameters.pop(part, "")) for name, part in DATABASE_PARTS.items()}
    return {"ENGINE": "controlplane.postgresql", **named, "OPTIONS": {**PROBED, **parameters}}


def database_pool(name: str, help: str = "") -> dict[str, object]:
    """Return the options of a connection pool of the variable's size; {} for size 0: no pool."""
    size = integer(name, 0, help, "connections")
    if not size:
        return {}
    # A connection closes after 60 s without use and after 600 s in any case, so that changes of a
    # load balancer's servers or of DNS names take effect.
    return {"pool": {"min_size": 1, "max_size": size, "max_idle": 60, "max_lifetime": 600}}


def redis_url(name: str, default: str, help: str = "") -> str:
    """Return the URL of Redis or Sentinel in the form of `contract.redis_url`."""
    value = text(name, default, help, "URL", is_secret=True)
    try:
        parse_redis_url(value)
    except RedisUrlError as error:
        raise SettingError(f"{name} {error}") from None
    return value


def broker_url(url: str) -> str:
    """Convert the Redis URL to Celery's form: without parameters, with all sentinels."""
    address = parse_redis_url(url)
    if not address.service:
        return url if CERT_PARAMETER in url else url.partition("?")[0]
    login = ""
    if address.credentials:
        user, password = (
            quote(address.credentials.get(each, ""), safe="") for each in ("username", "password")
        )
        login = f"{user}:{password}@"
    return ";".join(
        f"sentinel://{login}{host}:{port}/{address.db}" for host, port in address.sentinels
    )


def broker_options(url: str) -> dict[str, object]:
    """Return Celery's transport options: keepalive probes, and Sentinel's service and TLS."""
    address = parse_redis_url(url)
    probed: dict[str, object] = {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    if not address.service:
        return probed
    tls: dict[str, object] = {"ssl": True, **address.tls_files} if address.is_tls else {}
    sentinel = {**tls, **address.sentinel_credentials, "socket_timeout": 2.0}
    return {**probed, "master_name": address.service, "sentinel_kwargs": sentinel}


def broker_tls(url: str) -> dict[str, object] | None:
    """Return the TLS options that make Celery verify the server; it does not by default.

    None without TLS, or if the URL has a `ssl_cert_reqs` parameter, which Celery reads itself.
    """
    address = parse_redis_url(url)
    if not address.is_tls or CERT_PARAMETER in url:
        return None
    verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return {**verified, **address.tls_files}
