"""Triton's control side: load, unload, probe. `tritonclient`'s errors cross here, come out ours.

A server that cannot be reached is `Unavailable`; a refusal is `TritonRefused` in Triton's words.
Predictions never come through here. Whoever may load can run code in the server, so that it should
ask for a token, which only the control plane has; all of it is asked over HTTP.
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
# Loading a large model takes long; a probe that takes so long is a failure.
LOAD_TIMEOUT_S = 120.0
PROBE_TIMEOUT_S = 10.0
# Statuses of a server that lives and refuses, against those of one that cannot be reached.
NOT_REACHED = {None, "", "502", "503", "504"}
# A version that was unloaded gets a 503 as well, from a server that is there.
NOT_LOADED = "Request for unknown model"
# The header that Triton's restricted APIs ask for.
CONTROL_HEADER = "interlock-control"
RESTRICTED = "This API is restricted"


class TritonRefused(InterlockError):
    """Triton answered and said no; the message is its own."""

    status = 502
    code = "triton_refused"


@dataclass(frozen=True)
class Endpoint:
    """One Triton server of a cluster."""

    url: str

    def load(self, version: ModelVersion) -> None:
        """Load `version`, or load it anew. Raises Unavailable, TritonRefused."""
        with self._client(LOAD_TIMEOUT_S) as client:
            client.load_model(triton_name(version), headers=_token())

    def unload(self, version: ModelVersion) -> None:
        """Unload `version`; requests that it is answering are finished."""
        with self._client(LOAD_TIMEOUT_S) as client:
            client.unload_model(triton_name(version), headers=_token())

    def is_unloaded(self, version: ModelVersion) -> bool:
        """Say whether nothing of `version` is left: also not what is still being unloaded."""
        with self._client(PROBE_TIMEOUT_S) as client:
            index = client.get_model_repository_index(headers=_token())
        states = {row["name"]: row.get("state", "") for row in index}
        return states.get(triton_name(version), "") in {"", "UNAVAILABLE"}

    def answer(self, version: ModelVersion, request: Request | None = None) -> None:
        """Ask `version` for a real prediction: READY alone says nothing about a crashed process.

        Without a warm-up `request` it is asked with zeros.

        Raises:
            Unavailable: the server cannot be reached.
            TritonRefused: the version does not answer, or answers without a promised output.
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
            raise TritonRefused(f"the answer lacks the outputs {', '.join(missing)}")

    def is_open(self) -> bool:
        """Say whether a stranger who reaches the server may command it. Raises Unavailable."""
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
                    f"{message.strip()}: set INTERLOCK_TRITON_TOKEN to what it was started with"
                )
            raise TritonRefused(message.strip()) from error
        except (OSError, ValueError) as error:
            raise Unavailable(f"{self.url} does not answer: {error}") from error
        finally:
            client.close()


def _token() -> dict[str, str]:
    return {CONTROL_HEADER: settings.TRITON_TOKEN} if settings.TRITON_TOKEN else {}


def endpoints_of(cluster: ServingCluster) -> list[Endpoint]:
    """Return the servers of a cluster."""
    return [Endpoint(url) for url in cluster.endpoints]


def zeros(version: ModelVersion) -> Request:
    """Return one request that fits the signature: zeros, free dimensions set to 1."""
    inputs = []
    for tensor in version.signature["inputs"]:
        shape = [1 if size == -1 else size for size in tensor["shape"]]
        nothing = "" if tensor["datatype"] == "BYTES" else 0
        inputs.append(
            {
                "name": tensor["name"],
                "datatype": tensor["datatype"],
                "shape": shape,
                "data": [nothing] * prod(shape),
            }
        )
    return inputs


def infer_inputs(request: Request) -> list[Any]:
    """Return a request as `tritonclient` takes it. Raises TritonRefused for data that is not."""
    import numpy as np
    from tritonclient.http import InferInput
    from tritonclient.utils import triton_to_np_dtype

    inputs = []
    for given in request:
        try:
            if given["datatype"] == "BYTES":
                texts = np.array(given["data"], dtype=str).ravel()
                array = np.array([text.encode() for text in texts], dtype=object)
            else:
                array = np.array(given["data"], dtype=triton_to_np_dtype(given["datatype"]))
            shaped = array.reshape(given["shape"])
        except (TypeError, ValueError, OverflowError) as error:
            raise TritonRefused(f"warm-up data of {given['name']} is none: {error}") from error
        item = InferInput(given["name"], given["shape"], given["datatype"])
        item.set_data_from_numpy(shaped)
        inputs.append(item)
    return inputs
