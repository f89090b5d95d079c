"""Control client of Triton: load, unload, probe. Errors of `tritonclient` become InterlockErrors.

An unreachable server raises `Unavailable`, a refusal `TritonRefused` with Triton's message. User
predictions never pass through here. A client that may load models can run code in the server, so
the server should require a token, which only the control plane has. All calls use HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings

from apps.lib.errors import InterlockError, Unavailable
from apps.models.models import ModelVersion, ServingCluster
from apps.models.repository import triton_name
from apps.models.warmup import Request

CONNECT_TIMEOUT_S = 2.0
# Loading a large model takes minutes; a probe that takes this long has failed.
LOAD_TIMEOUT_S = 120.0
PROBE_TIMEOUT_S = 10.0
# Statuses that mean that the server cannot be reached; others are refusals.
NOT_REACHED = {None, "", "502", "503", "504"}
# The exception: a reachable server answers 503 for a version that is not loaded.
NOT_LOADED = "Request for unknown model"
# The header that Triton's restricted APIs require.
CONTROL_HEADER = "interlock-control"
RESTRICTED = "This API is restricted"


class TritonRefused(InterlockError):
    """Triton refused the request; the message is Triton's."""

    status = 502
    code = "triton_refused"


@dataclass(frozen=True)
class Endpoint:
    """One Triton server of a cluster."""

    url: str

    def load(self, version: ModelVersion) -> None:
        """Load or reload `version`. Raises Unavailable, TritonRefused."""
        with self._client(LOAD_TIMEOUT_S) as client:
            client.load_model(triton_name(version), headers=_token())

    def unload(self, version: ModelVersion) -> None:
        """Unload `version`; Triton completes its running requests."""
        with self._client(LOAD_TIMEOUT_S) as client:
            client.unload_model(triton_name(version), headers=_token())

    def is_unloaded(self, version: ModelVersion) -> bool:
        """Return whether `version` is completely unloaded, not just unloading."""
        with self._client(PROBE_TIMEOUT_S) as client:
            index = client.get_model_repository_index(headers=_token())
        states = {row["name"]: row.get("state", "") for row in index}
        return states.get(triton_name(version), "") in {"", "UNAVAILABLE"}

    def answer(self, version: ModelVersion, request: Request | None = None) -> None:
        """Send a real request to `version`: a crashed process still reports READY.

        Without a warm-up `request`, the inputs are zeros.

        Raises:
            Unavailable: the server cannot be reached.
            TritonRefused: the version fails, or its response lacks a declared output.
        """
        from tritonclient.http import InferRequestedOutput

        outputs = [item["name"] for item in version.signature["outputs"]]
        timeout_s = max(PROBE_TIMEOUT_S, version.model.timeout_ms / 1_000)
        with self._client(timeout_s) as client:
            result = client.infer(
                triton_name(version),
                infer_inputs(request if request is not None else zeros(version)),
                model_version=str(version.number),
                outputs=[InferRequestedOutput(name) for name in outputs],
            )
            answered = {item["name"] for item in result.get_response()["outputs"]}
        missing = sorted(set(outputs) - answered)
        if missing:
            raise TritonRefused(f"the response lacks the outputs {', '.join(missing)}")

    def is_open(self) -> bool:
        """Return whether the server accepts control requests without token. Raises Unavailable."""
        try:
            answer = httpx.post(
                f"{self.url.rstrip('/')}/v2/repository/index",
                timeout=CONNECT_TIMEOUT_S,
                trust_env=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise Unavailable(f"{self.url} does not answer: {error}") from error
        if answer.is_server_error:
            raise Unavailable(f"{self.url} answered {answer.status_code}")
        return answer.is_success

    @contextmanager
    def _client(self, timeout_s: float) -> Iterator[Any]:
        from tritonclient.http import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        parts = urlsplit(self.url)
        client = InferenceServerClient(
            parts.netloc,
            ssl=parts.scheme == "https",
            connection_timeout=CONNECT_TIMEOUT_S,
            network_timeout=timeout_s,
        )
        try:
            yield client
        except InferenceServerException as error:
            message = str(error.message())
            if error.status() in NOT_REACHED and NOT_LOADED not in message:
                raise Unavailable(f"{self.url} does not answer: {message}") from error
            if RESTRICTED in message:
                message = (
                    f"{message.strip()}: set INTERLOCK_TRITON_TOKEN to the token of the server"
                )
            raise TritonRefused(message.strip()) from error
        except (OSError, ValueError) as error:
            raise Unavailable(f"{self.url} does not answer: {error}") from error
        finally:
            client.close()


def _token() -> dict[str, str]:
    return {CONTROL_HEADER: settings.TRITON_TOKEN} if settings.TRITON_TOKEN else {}


def endpoints_of(cluster: ServingCluster) -> list[Endpoint]:
    return [Endpoint(url) for url in cluster.endpoints]


def zeros(version: ModelVersion) -> Request:
    """Return a request of zeros for the signature, with free dimensions set to 1."""
    inputs = []
    for tensor in version.signature["inputs"]:
        shape = [1 if size == -1 else size for size in tensor["shape"]]
        zero = "" if tensor["datatype"] == "BYTES" else 0
        inputs.append(
            {
                "name": tensor["name"],
                "datatype": tensor["datatype"],
                "shape": shape,
                "data": [zero] * prod(shape),
            }
        )
    return inputs


def infer_inputs(request: Request) -> list[Any]:
    """Convert a request for `tritonclient`. Raises TritonRefused for invalid data."""
    import numpy as np
    from tritonclient.http import InferInput
    from tritonclient.utils import triton_to_np_dtype

    inputs = []
    for tensor in request:
        try:
            if tensor["datatype"] == "BYTES":
                texts = np.array(tensor["data"], dtype=str).ravel()
                array = np.array([text.encode() for text in texts], dtype=object)
            else:
                array = np.array(tensor["data"], dtype=triton_to_np_dtype(tensor["datatype"]))
            shaped = array.reshape(tensor["shape"])
        except (TypeError, ValueError, OverflowError) as error:
            raise TritonRefused(
                f"warm-up data of {tensor['name']} is not valid: {error}"
            ) from error
        infer_input = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        infer_input.set_data_from_numpy(shaped)
        inputs.append(infer_input)
    return inputs
