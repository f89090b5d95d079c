"""Resolve request ids of outcomes to unit, version and time.

A request id is dated by the data plane's clock, as exposures are. An outcome cannot precede the
answer that it is about; one that is dated earlier gets the time of its request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from apps.experiments.shadow_pairs import request_hash
from apps.models.models import ModelVersion
from contract.messages import Outcome
from contract.request_ids import (
    RequestId,
    RequestIdError,
    check_age,
    parse_request_id,
    unit_of,
    with_unit,
)

UNKNOWN_VERSION = "request_id names an unknown version"


@dataclass(frozen=True)
class Answer:
    """Version that answered an outcome's request, and the time in Unix milliseconds.

    `request_hash` is the key of the request in the tables.
    """

    version_id: int
    at_ms: int
    request_hash: int


class Requests:
    """The parsed requests of a list of outcomes, with their registered versions."""

    def __init__(self, outcomes: Sequence[Outcome], now: datetime) -> None:
        self._now_ms = round(now.timestamp() * 1_000)
        self._read: dict[str, RequestId | str] = {}
        for text in {outcome.request_id for outcome in outcomes if outcome.request_id}:
            try:
                self._read[text] = parse_request_id(text)
            except RequestIdError as error:
                self._read[text] = str(error)
        self._versions = _versions(each for each in self._read.values() if type(each) is RequestId)

    def refusal_reason(self, outcome: Outcome) -> str | None:
        """Return why the outcome's request id is refused, or None; None without a request id."""
        if not outcome.request_id:
            return None
        request = self._read[outcome.request_id]
        if isinstance(request, str):
            return request
        if (request.model, request.version) not in self._versions:
            return UNKNOWN_VERSION
        try:
            check_age(request, self._now_ms)
            unit_of(outcome.unit_id, request)
        except RequestIdError as error:
            return str(error)
        return None

    def resolve(self, outcome: Outcome) -> Outcome:
        """Return an accepted outcome with its unit, dated no earlier than its answer."""
        answer = self.answer(outcome)
        if answer is None:
            return outcome
        return msgspec.structs.replace(
            with_unit(outcome), occurred_at_ms=max(outcome.occurred_at_ms, answer.at_ms)
        )

    def answer(self, outcome: Outcome) -> Answer | None:
        """Return the answer to an accepted outcome's request; None without a request id."""
        request = self._read.get(outcome.request_id)
        if not isinstance(request, RequestId):
            return None
        version_id = self._versions[request.model, request.version]
        # As for exposures: a timestamp in the future is replaced by now.
        at_ms = min(request.at_ms, self._now_ms)
        return Answer(version_id, at_ms, request_hash(request.answer))


def _versions(requests: Iterable[RequestId]) -> dict[tuple[str, str], int]:
    """Return the ids of the registered versions, by model and number as in request ids."""
    pairs = [(each.model, int(each.version)) for each in requests if _is_number(each.version)]
    if not pairs:
        return {}
    models, numbers = {model for model, _ in pairs}, {number for _, number in pairs}
    # Query the product of models and numbers: a client may send any number of pairs.
    versions = ModelVersion.objects.filter(model__name__in=models, number__in=numbers)
    rows = versions.values_list("model__name", "number", "pk")
    return {(model, str(number)): pk for model, number, pk in rows}


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdecimal() and len(version) < 10
