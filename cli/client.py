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
    """The control plane said no, or could not be asked; `exit_code` is for the shell."""

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
        """Return the text of a GET, of what is no JSON. Raises ApiError."""
        return self._answer("GET", path, params=params).text

    def post(
        self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """Return the JSON of a POST, sent once more with the same key when the line broke.

        Raises:
            ApiError: the request was refused, or nobody answered.
        """
        return self._post(path, json=body or {}, timeout=timeout_s)

    def upload(
        self, path: str, files: dict[str, Path], fields: dict[str, str], *, timeout_s: float
    ) -> Any:
        """Return the JSON of a POST of a form with files, repeated as `post` does."""
        with ExitStack() as stack:
            # The fields come first: the server stops reading at a file that is too large.
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
        """Return the JSON of a PATCH, PUT or DELETE, which may be repeated. Raises ApiError."""
        return self._send(method, path, json=body or {})

    def pages(self, path: str, **params: Any) -> list[Any]:
        """Return all rows of a paged list."""
        rows: list[Any] = []
        page = 1
        while True:
            answer = self.get(path, page=page, **params)
            rows += answer["results"]
            if not answer["next"]:
                return rows
            page += 1

    def _send(self, method: str, path: str, **options: Any) -> Any:
        response = self._answer(method, path, **options)
        return response.json() if response.content else None

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ApiError(
                f"{self._http.base_url} does not answer: {error}", EXIT_UNREACHABLE
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
        return f"The server answered {response.status_code}: {response.text[:200]}"
