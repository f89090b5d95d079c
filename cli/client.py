"""A thin REST client: requests in, JSON out, errors as one exception with an exit code."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

TIMEOUT_S = 30.0
EXIT_OK = 0
EXIT_REFUSED_BY_VERDICT = 1
EXIT_BAD_REQUEST = 2
EXIT_UNREACHABLE = 3
EXIT_TIMED_OUT = 4


class ApiError(Exception):
    """The control plane refused the request or is unreachable; `exit_code` is for the shell."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Client:
    """The REST API at `base_url` (e.g. `https://interlock.example`), with a bearer token."""

    def __init__(
        self, base_url: str, token: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(
            base_url=f"{base_url.rstrip('/')}/api/v1/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            transport=transport,
        )

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a GET. Raises ApiError."""
        return self._send("GET", path, params=params)

    def text(self, path: str, **params: Any) -> str:
        """Return the text of a GET whose response is not JSON. Raises ApiError."""
        return self._request("GET", path, params=params).text

    def post(
        self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """Return the JSON of a POST; after a broken connection, send it again with the same key.

        Raises:
            ApiError: the server refused the request or did not respond.
        """
        return self._post(path, json=body or {}, timeout=timeout_s)

    def upload(
        self, path: str, files: dict[str, Path], fields: dict[str, str], *, timeout_s: float
    ) -> Any:
        """Return the JSON of a POST of a form with files; retried like `post`."""
        with ExitStack() as stack:
            # The fields come first: the server stops reading at a file over its size limit.
            parts = {
                name: (file.name, stack.enter_context(file.open("rb")), "application/octet-stream")
                for name, file in files.items()
            }
            return self._post(path, data=fields, files=parts, timeout=timeout_s)

    def _post(self, path: str, **options: Any) -> Any:
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        try:
            return self._send("POST", path, headers=headers, **options)
        except ApiError as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            return self._send("POST", path, headers=headers, **options)

    def change(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON of a PATCH, PUT or DELETE, all idempotent. Raises ApiError."""
        return self._send(method, path, json=body or {})

    def pages(self, path: str, **params: Any) -> list[Any]:
        """Return the rows of all pages of a list."""
        rows: list[Any] = []
        page = 1
        while True:
            body = self.get(path, page=page, **params)
            rows += body["results"]
            if not body["next"]:
                return rows
            page += 1

    def _send(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        return response.json() if response.content else None

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ApiError(
                f"{self._http.base_url} is unreachable: {error}", EXIT_UNREACHABLE
            ) from error
        if response.is_success:
            return response
        code = EXIT_UNREACHABLE if response.status_code >= 500 else EXIT_BAD_REQUEST
        raise ApiError(_message(response), code)


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['message']} ({response.status_code} {error['code']})"
    except (ValueError, KeyError, TypeError):
        return f"the server responded with {response.status_code}: {response.text[:200]}"
