"""Who this instance is, and whether the control plane takes it for that.

An instance that is refused (its token was revoked, or another one has its name) serves on, since no
fault of the control plane reaches a prediction. What it would send is kept on disk meanwhile: once
it has a token that is good, nothing is lost.
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
# Who asks is not known, may not ask that, or is there already.
REFUSALS = (401, 403, 409)
MESSAGE_LENGTH_MAX = 500


class Withheld(Exception):
    """What waits is not sent now; the message says why."""


class Standing:
    """What the control plane last made of our reports."""

    def __init__(self, report_path: str, *, is_new: bool) -> None:
        # Where reports are posted; other answers tell nothing.
        self._report_path = report_path
        # Why nothing is sent; None once a report was taken. A new home has to introduce itself.
        self.obstacle: str | None = "no report of this state directory was taken yet"
        if not is_new:
            self.obstacle = None

    async def note(self, response: httpx.Response) -> None:
        """Take notice of an answer of the control plane: a hook of its client."""
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
        """Raise Withheld while what we send would be refused."""
        if self.obstacle is not None:
            raise Withheld(f"{self.obstacle}; what is to be sent waits on disk")


def read_home(folder: Path) -> tuple[str, bool]:
    """Return the name of a state directory, and whether it has just been given.

    Workers that start at once agree on one.
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
    """Return the control plane's own words."""
    try:
        document = msgspec.json.decode(content)
        return str(document["error"]["message"])[:MESSAGE_LENGTH_MAX]
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
