"""Outcomes that carry the id of their request: of which unit and version they are, and from when.

The id is dated by the data plane's clock, as exposures are. An outcome cannot precede the answer
that it is about, so one whose own clock says that it did is dated by its request.
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

UNKNOWN_VERSION = "request_id is of a version that is not known here"


@dataclass(frozen=True)
class Answer:
    """Which version answered the request of an outcome, and when, in Unix milliseconds.

    `request_hash` is what the tables know the request by.
    """

    version_id: int
    at_ms: int
    request_hash: int


class Requests:
    """The requests of some outcomes, held against the versions that there are."""

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
        """Return why the outcome's request cannot be used, or None; most outcomes have none."""
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

    def placed(self, outcome: Outcome) -> Outcome:
        """Return an outcome that was not refused: with its unit, and no earlier than its answer."""
        answer = self.answer(outcome)
        if answer is None:
            return outcome
        return msgspec.structs.replace(
            with_unit(outcome), occurred_at_ms=max(outcome.occurred_at_ms, answer.at_ms)
        )

    def answer(self, outcome: Outcome) -> Answer | None:
        """Return what answered the request of an outcome that was not refused, if it has one."""
        request = self._read.get(outcome.request_id)
        if not isinstance(request, RequestId):
            return None
        version_id = self._versions[request.model, request.version]
        # As of an exposure: what a fast clock puts into the future is now.
        at_ms = min(request.at_ms, self._now_ms)
        return Answer(version_id, at_ms, request_hash(request.answer))


def _versions(requests: Iterable[RequestId]) -> dict[tuple[str, str], int]:
    """Return the ids of those versions that there are, by model and number as requests have it."""
    named = [(each.model, int(each.version)) for each in requests if _is_number(each.version)]
    if not named:
        return {}
    models, numbers = {model for model, _ in named}, {number for _, number in named}
    # Each of these with each of those, which are few: anybody may name any number of pairs.
    versions = ModelVersion.objects.filter(model__name__in=models, number__in=numbers)
    rows = versions.values_list("model__name", "number", "pk")
    return {(model, str(number)): pk for model, number, pk in rows}


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdecimal() and len(version) < 10
