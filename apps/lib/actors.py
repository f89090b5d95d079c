"""The actor of a change: a person, an API token or Interlock itself, and where it acts from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Actor:
    """`name` is a user name or `interlock`; `origin` is an IP address, or the trigger of a tick."""

    name: str
    origin: str = ""


INTERLOCK = Actor("interlock", "tick")
