"""The demo's client of the control plane's REST API."""

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
# A wait fails after this time without any change of the response. It does not limit the total
# time: on a slow machine everything takes longer, but makes progress.
STILL_S = 600.0
TIMEOUT_S = 60.0
# Part of the response to a repeated request while the first one is running.
STILL_RUNNING = "with this Idempotency-Key is still running"


class DemoFailed(Exception):
    """A step of the demo did not have the expected result."""


class Control:
    """A client of the REST API with its own token."""

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
        return self._read(_retry(lambda: self._http.get(path)))

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        # Sent again after a timeout; the key makes it run once.
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        return self._read(_retry(lambda: self._http.post(path, json=body or {}, headers=headers)))

    def sync(self) -> None:
        """Import MLflow's versions; a conflict with a running sync is not an error."""
        response = _retry(lambda: self._http.post("models/sync/"))
        if response.status_code != httpx.codes.CONFLICT:
            self._read(response)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._read(_retry(lambda: self._http.patch(path, json=body)))

    def predict(self, model: str, number: int) -> Any:
        """Send a request to a version by its number, past any split, as a smoke test does."""
        url = f"{self.stack.urls.dataplane}/v2/models/{model}/versions/{number}/infer"
        image = {"name": "X", "datatype": "FP32", "shape": [1, PIXELS], "data": [0.0] * PIXELS}
        body = {"inputs": [image]}
        return self._read(_retry(lambda: httpx.post(url, json=body, timeout=TIMEOUT_S)))

    def ensure(self, path: str, name: str, body: dict[str, Any]) -> None:
        """Create a named object unless it exists from an earlier demo."""
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
        """Poll `path` until `accept` returns True; return the response.

        Raises:
            DemoFailed: the response did not change for `within_s` seconds.
        """
        last, changed_at = None, time.monotonic()
        while True:
            document = self.get(path)
            watch(document)
            if accept(document):
                return document
            if document != last:
                last, changed_at = document, time.monotonic()
            if time.monotonic() > changed_at + within_s:
                raise DemoFailed(f"{path} has not changed for {within_s:.0f} s: {document}")
            time.sleep(POLL_S)

    @staticmethod
    def _read(response: httpx.Response) -> Any:
        if not response.is_success:
            raise DemoFailed(f"{response.request.url} responded {response.text[:300]}")
        return response.json() if response.content else None


def _retry(send: Callable[[], httpx.Response]) -> httpx.Response:
    """Send until there is a response, for up to STILL_S seconds. Raises httpx.TransportError."""
    give_up_at = time.monotonic() + STILL_S
    while True:
        try:
            response = send()
        except httpx.TransportError:
            if time.monotonic() > give_up_at:
                raise
        else:
            if STILL_RUNNING not in response.text or time.monotonic() > give_up_at:
                return response
        time.sleep(POLL_S)


def _issue_token(stack: Stack) -> str:
    command = [sys.executable, "manage.py", "issue_token", stack.admin_username, "demo"]
    done = subprocess.run(
        command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"cannot create an API token: {done.stderr[-500:]}")
    return done.stdout.strip().splitlines()[-1]
