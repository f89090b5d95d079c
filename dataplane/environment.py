"""How a setting of the data plane is declared, and read from the environment.

A field of a dataclass is a setting: its name gives the variable, its default the type. A value that
cannot be used raises `ConfigError` with the name of the variable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from contract.redis_url import RedisUrlError, parse_redis_url
from contract.variables import Variable

T = TypeVar("T")
# Reads the text of a variable, which is not empty. Raises ValueError with what it must be.
Parse = Callable[[str], Any]
_REQUIRED = object()
_KEY = "setting"


class ConfigError(ValueError):
    """A setting that is missing or cannot be used; the message names the variable."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field declares beside its name and default."""

    help: str
    unit: str
    parse: Parse
    # The variable where it is not INTERLOCK_ and the field's name.
    name: str
    is_required: bool
    is_secret: bool
    # The default in words, where the value does not say it.
    default: str | None


def setting(
    default: Any,
    unit: str,
    help: str,
    *,
    parse: Parse | None = None,
    name: str = "",
    shown: str | None = None,
    is_secret: bool = False,
) -> Any:
    """Declare a field that the environment may set; a callable default makes the value.

    Without `parse` a number greater than 0 is read, of the type of the default.
    """
    parse = parse or positive(type(default))
    declared = Setting(help, unit, parse, name, False, is_secret, shown)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={_KEY: declared})
    return dataclasses.field(default=default, metadata={_KEY: declared})


def required(
    help: str, parse: Parse, *, unit: str = "", name: str = "", is_secret: bool = False
) -> Any:
    """Declare a field that the environment must set."""
    declared = Setting(help, unit, parse, name, True, is_secret, None)
    return dataclasses.field(metadata={_KEY: declared})


def read(kind: type[T], environ: Mapping[str, str], **sections: Any) -> T:
    """Return an instance of the dataclass `kind` with what `environ` sets.

    `sections` are fields that are no settings. Raises ConfigError.
    """
    values = {}
    for name, variable, declared in _settings(kind):
        text = environ.get(variable, "").strip()
        if text:
            values[name] = _parsed(variable, declared.parse, text)
        elif declared.is_required:
            raise ConfigError(f"{variable} is not set")
    return kind(**values, **sections)


def variables(kind: type[Any]) -> list[Variable]:
    """Return what the settings of `kind` are, for documents."""
    rows = []
    for field in dataclasses.fields(kind):
        declared = field.metadata.get(_KEY)
        if declared is not None:
            default = "" if declared.is_required else _shown(field, declared)
            rows.append(
                Variable(
                    _variable(field.name, declared), default, declared.help, declared.unit,
                    declared.is_required, declared.is_secret,
                )
            )  # fmt: skip
    return rows


def _settings(kind: type[Any]) -> Iterator[tuple[str, str, Setting]]:
    for field in dataclasses.fields(kind):
        declared = field.metadata.get(_KEY)
        if declared is not None:
            yield field.name, _variable(field.name, declared), declared


def _variable(field: str, declared: Setting) -> str:
    return declared.name or f"INTERLOCK_{field.upper()}"


def _shown(field: dataclasses.Field[Any], declared: Setting) -> str:
    if declared.default is not None:
        return declared.default
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _parsed(variable: str, parse: Parse, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{variable} {error}") from None


def positive(kind: Callable[[str], Any]) -> Parse:
    """Return what reads a number greater than 0."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"must be a number, not {text!r}") from None
        if not 0 < value < float("inf"):
            raise ValueError(f"must be greater than 0, not {text!r}")
        return value

    return parse


def one_of(*choices: str) -> Parse:
    """Return what reads one of `choices`."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")
        return text

    return parse


def path(text: str) -> Path:
    return Path(text)


def web_url(text: str) -> str:
    """Return an HTTP URL without a slash at its end."""
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"must begin with http:// or https://: {text!r}")
    return text.rstrip("/")


def redis_url(text: str) -> str:
    """Return a URL of Redis as `contract.redis_url` reads it."""
    try:
        parse_redis_url(text)
    except RedisUrlError as error:
        # Not shown: a password may stand in it.
        raise ValueError(str(error)) from None
    return text.rstrip("/")


def bind(text: str) -> tuple[str, int]:
    """Return the address and port to listen on."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"must be host:port, not {text!r}")
    return host.strip("[]"), int(port)


def grpc_bind(text: str) -> tuple[str, int]:
    if find_spec("grpc") is None:
        raise ValueError("needs the package grpcio, which is not installed")
    return bind(text)
