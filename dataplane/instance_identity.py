"""The identity of this instance, and whether the control plane accepts it.

An instance that is refused (its token was revoked, or another instance has its name) serves on: a
fault of the control plane must not affect predictions. What it would send is kept on disk, and sent
once it has a valid token.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

import httpx
import msgspec

log = logging.getLogger("interlock.dataplane")

HOME_FILE = "home"
# The instance is unknown, is not allowed, or is a duplicate.
REFUSALS = (401, 403, 409)
MESSAGE_LENGTH_MAX = 500


class Withheld(Exception):
    """Data on disk is not sent now; the message gives the reason."""


class Standing:
    """The control plane's last response to our reports."""

    def __init__(self, report_path: str, *, is_new: bool) -> None:
        # The path of reports; other responses are ignored.
        self._report_path = report_path
        # Why nothing is sent; None once a report was accepted. A new state directory must report
        # first.
        self.obstacle: str | None = "no report of this state directory was accepted yet"
        if not is_new:
            self.obstacle = None

    async def note(self, response: httpx.Response) -> None:
        """Record a response of the control plane: a hook of its client."""
        if response.request.url.path != self._report_path:
            return
        if response.is_success:
            self.obstacle = None
        elif response.status_code in REFUSALS:
            await response.aread()
            reason = _message(response.content) or f"status {response.status_code}"
            obstacle = f"the control plane refuses this instance: {reason}"
            if obstacle != self.obstacle:
                log.error("instance.refused: %s", reason)
            self.obstacle = obstacle

    def check(self) -> None:
        """Raise Withheld while the control plane would refuse what we send."""
        if self.obstacle is not None:
            raise Withheld(f"{self.obstacle}; unsent data is kept on disk")


def read_home(folder: Path) -> tuple[str, bool]:
    """Return the id of a state directory, and whether it is new.

    Workers that start at the same time agree on one id.
    """
    path = folder / HOME_FILE
    is_new = False
    if not path.exists():
        draft = folder / f"{HOME_FILE}.{secrets.token_hex(4)}.tmp"
        draft.write_text(secrets.token_hex(8))
        try:
            os.link(draft, path)
            is_new = True
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip(), is_new


def _message(content: bytes) -> str:
    """Return the error message of the control plane's response."""
    try:
        document = msgspec.json.decode(content)
        return str(document["error"]["message"])[:MESSAGE_LENGTH_MAX]
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
