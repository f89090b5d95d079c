"""What the demo asks of the control plane, through the same REST API as everybody."""

from __future__ import annotations

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
            timeout=30,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        return self._read(self._http.get(path))

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._read(self._http.post(path, json=body or {}))

    def predict(self, model: str, number: int) -> Any:
        """Ask one version by its number, past any split, as a smoke test does."""
        url = f"{self.stack.urls.dataplane}/v2/models/{model}/versions/{number}/infer"
        image = {"name": "X", "datatype": "FP32", "shape": [1, PIXELS], "data": [0.0] * PIXELS}
        return self._read(httpx.post(url, json={"inputs": [image]}, timeout=30))

    def ensure(self, path: str, name: str, body: dict[str, Any]) -> None:
        """Create a named thing unless an earlier demo did."""
        if self._http.get(f"{path}{name}/").status_code == 404:
            self.post(path, {"name": name, **body})

    def wait_for(
        self,
        path: str,
        accept: Callable[[Any], bool],
        *,
        within_s: float,
        watch: Callable[[Any], None] = lambda _: None,
    ) -> Any:
        """Poll until `accept` says yes. Raises DemoFailed with the last answer after `within_s`."""
        deadline = time.monotonic() + within_s
        while True:
            answer = self.get(path)
            watch(answer)
            if accept(answer):
                return answer
            if time.monotonic() > deadline:
                raise DemoFailed(f"{path} did not get there within {within_s:.0f} s: {answer}")
            time.sleep(POLL_S)

    @staticmethod
    def _read(response: httpx.Response) -> Any:
        if not response.is_success:
            raise DemoFailed(f"{response.request.url} answered {response.text[:300]}")
        return response.json() if response.content else None


def _issue_token(stack: Stack) -> str:
    command = [sys.executable, "manage.py", "issue_token", stack.admin_username, "demo"]
    done = subprocess.run(
        command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"no API token could be made: {done.stderr[-500:]}")
    return done.stdout.strip().splitlines()[-1]
