"""POSTs to an address from a user, within bounds of time and size; see `apps.lib.egress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apps.lib.egress import EgressPolicy, exchange

TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 1_024
RETRY_AFTER_S_MAX = 3_600


@dataclass(frozen=True)
class Answer:
    """`text` is the start of the body; `retry_after_s` is 0 without a Retry-After header."""

    status: int
    text: str
    retry_after_s: int = 0


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    policy: EgressPolicy,
    timeout_s: float = TIMEOUT_S,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> Answer:
    """Return the response of the endpoint, whatever its status.

    Raises:
        Unavailable: no response in time, or the policy refuses; the message says why.
    """
    with exchange("POST", url, headers, body, policy=policy, timeout_s=timeout_s) as response:
        text = response.read(bytes_max).decode("utf-8", "replace")
        wait = response.getheader("retry-after") or ""
        wait_s = int(wait) if wait.isdecimal() and len(wait) < 9 else 0
        return Answer(response.status, text, min(wait_s, RETRY_AFTER_S_MAX))
