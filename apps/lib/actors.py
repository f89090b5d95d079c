"""Who acts: a person, a token, or Interlock itself; and from where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Actor:
    """`name` is a user name or `interlock`; `origin` is an address, or what woke us."""

    name: str
    origin: str = ""


INTERLOCK = Actor("interlock", "tick")
