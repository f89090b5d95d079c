"""A setting that comes from the environment, as the plane that reads it declares it.

Documents, `.env.example` and `docker-compose.yml` are made from these declarations:
`embedded.settings_pages`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable; `default` is as somebody would write it, empty for none."""

    name: str
    default: str
    help: str
    unit: str = ""
    # The process does not start without it.
    is_required: bool = False
    is_secret: bool = False
