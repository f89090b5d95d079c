"""Data-plane instances for tests: they send batches, sealed with a token or unsealed."""

from __future__ import annotations

import time
from typing import Any

import redis

from apps.identity.tokens import issue_token
from apps.lib.clock import database_now
from contract.message_signatures import SEAL_FIELD, Sealer
from contract.messages import FIELD, STREAM_TELEMETRY, Batch, encode_batch
from tests.rollouts.factories import ANNA


def issue(instance: str) -> str:
    """Return a new token of an instance."""
    return issue_token(instance=instance, actor=ANNA, now=database_now())[1]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Sender:
    """One process that sends batches."""

    def __init__(
        self, client: redis.Redis[bytes], token: str | None, name: str = "edge", home: str = "h"
    ) -> None:
        self.client = client
        self.name = name
        self.boot = f"boot-{home}"
        self.sealer = Sealer(token, name, self.boot, home) if token else None
        self.sequence = 0

    def batch(self, **lists: Any) -> Batch:
        self.sequence += 1
        return Batch(instance=self.name, boot=self.boot, sequence=self.sequence, **lists)

    def fields(self, data: bytes, stream: str, at_ms: int | None = None) -> dict[Any, Any]:
        """Return the fields of a stream entry."""
        if self.sealer is None:
            return {FIELD: data}
        at_ms = now_ms() if at_ms is None else at_ms
        return {FIELD: data, SEAL_FIELD: self.sealer.seal(stream, data, at_ms)}

    def send(
        self, batch: Batch, stream: str = STREAM_TELEMETRY, at_ms: int | None = None
    ) -> dict[Any, Any]:
        """Add a batch to a stream; return the fields of the entry."""
        fields = self.fields(encode_batch(batch), stream, at_ms)
        self.client.xadd(stream, fields)
        return fields
