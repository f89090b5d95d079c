"""What the demo asks of the control plane, through the same REST API as everybody."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from embedded.stack import Stack
from embedded.state import ROOT

POLL_S = 0.5
PIXELS = 64
# How long an answer may stay the same before nothing more is hoped for. Waits are for a condition,
# and for progress towards it: on a slow machine everything takes longer, and goes on.
STILL_S = 600.0
TIMEOUT_S = 60.0
# What is answered to a request that was sent again while the first one is at work.
UNDER_WAY = "with this Idempotency-Key is still being answered"


class DemoFailed(Exception):
    """Something did not happen as told."""


class Control:
    """A client of the REST API with a token of its own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.token = _issue_token(stack)
        self._http = httpx.Client(
            base_url=f"{stack.urls.web}/api/v1/",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=TIMEOUT_S,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        return self._read(_patiently(lambda: self._http.get(path)))

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        # Sent again when no answer comes in time; the key has it done once.
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        return self._read(
            _patiently(lambda: self._http.post(path, json=body or {}, headers=headers))
        )

    def sync(self) -> None:
        """Have MLflow's versions imported, unless another sync is at it: the next one follows."""
        response = _patiently(lambda: self._http.post("models/sync/"))
        if response.status_code != httpx.codes.CONFLICT:
            self._read(response)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._read(_patiently(lambda: self._http.patch(path, json=body)))

    def predict(self, model: str, number: int) -> Any:
        """Ask one version by its number, past any split, as a smoke test does."""
        url = f"{self.stack.urls.dataplane}/v2/models/{model}/versions/{number}/infer"
        image = {"name": "X", "datatype": "FP32", "shape": [1, PIXELS], "data": [0.0] * PIXELS}
        asked = {"inputs": [image]}
        return self._read(_patiently(lambda: httpx.post(url, json=asked, timeout=TIMEOUT_S)))

    def ensure(self, path: str, name: str, body: dict[str, Any]) -> None:
        """Create a named thing unless an earlier demo did."""
        if self._http.get(f"{path}{name}/").status_code == 404:
            self.post(path, {"name": name, **body})

    def wait_for(
        self,
        path: str,
        accept: Callable[[Any], bool],
        *,
        within_s: float = STILL_S,
        watch: Callable[[Any], None] = lambda _: None,
    ) -> Any:
        """Poll until `accept` says yes.

        Raises DemoFailed with the last answer when it stayed the same for `within_s`.
        """
        last, changed_at = None, time.monotonic()
        while True:
            answer = self.get(path)
            watch(answer)
            if accept(answer):
                return answer
            if answer != last:
                last, changed_at = answer, time.monotonic()
            if time.monotonic() > changed_at + within_s:
                raise DemoFailed(f"{path} has not changed for {within_s:.0f} s: {answer}")
            time.sleep(POLL_S)

    @staticmethod
    def _read(response: httpx.Response) -> Any:
        if not response.is_success:
            raise DemoFailed(f"{response.request.url} answered {response.text[:300]}")
        return response.json() if response.content else None


def _patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask until an answer comes. Raises httpx.TransportError when none has for STILL_S."""
    give_up_at = time.monotonic() + STILL_S
    while True:
        try:
            answer = ask()
        except httpx.TransportError:
            if time.monotonic() > give_up_at:
                raise
        else:
            if UNDER_WAY not in answer.text or time.monotonic() > give_up_at:
                return answer
        time.sleep(POLL_S)


def _issue_token(stack: Stack) -> str:
    command = [sys.executable, "manage.py", "issue_token", stack.admin_username, "demo"]
    done = subprocess.run(
        command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"no API token could be made: {done.stderr[-500:]}")
    return done.stdout.strip().splitlines()[-1]
