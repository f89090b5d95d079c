"""Record outcomes sent by REST. Each row is parsed separately, so that the report can name it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from apps.experiments.ingestion import OutcomeReport, record_outcomes
from apps.experiments.models import Metric
from apps.experiments.refusals import Origin, Refusal, count_refusals
from apps.experiments.unexposed import find_unexposed
from apps.lib.errors import Invalid
from contract.messages import Outcome
from contract.refusals import MALFORMED
from contract.request_ids import RequestIdError, with_unit

OUTCOMES_MAX = 10_000
# `Origin.via` of outcomes from this API.
VIA = "REST API"
BODY_BYTES_MAX = 16 * 1024**2


class TooLarge(Invalid):
    status = 413
    code = "too_large"


def check_length(header: str | None) -> None:
    """Raise TooLarge when Content-Length exceeds the limit."""
    length = int(header) if header and header.isdecimal() else 0
    if length > BODY_BYTES_MAX:
        raise TooLarge(f"The body has {length} bytes; the limit is {BODY_BYTES_MAX} bytes.")


class OutcomeRowInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    event_id: str
    metric: str
    value: float | bool
    unit_id: str | None = ""
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    request_id: str | None = ""


def parse_and_record(body: Any, now: datetime, sender: str = "") -> OutcomeReport:
    """Record the valid outcomes of `{"outcomes": [...]}`; refusals are counted for `sender`.

    The report holds the positions of refused outcomes and of those of unexposed units.

    Raises Invalid when the body as a whole is malformed or too long; then nothing is recorded.
    """
    rows = _rows(body)
    origin = Origin(sender, VIA)
    outcomes: list[Outcome] = []
    positions: list[int] = []
    refused: list[Refusal] = []
    for index, row in enumerate(rows):
        try:
            outcomes.append(_outcome(row, now))
            positions.append(index)
        except (msgspec.ValidationError, UnicodeError, RequestIdError) as error:
            event_id, metric = _text_of(row, "event_id"), _text_of(row, "metric")
            refused.append(
                Refusal(index, event_id, metric, _replace_surrogates(str(error)), origin)
            )
    _count_malformed(refused, now)
    report = record_outcomes(outcomes, now, origin)
    refused += [replace(refusal, index=positions[refusal.index]) for refusal in report.refused]
    refused_positions = {refusal.index for refusal in refused}
    unexposed = find_unexposed([outcome.unit_id for outcome in outcomes])
    return replace(
        report,
        refused=tuple(sorted(refused, key=lambda refusal: refusal.index)),
        unexposed=tuple(
            index
            for index, outcome in zip(positions, outcomes, strict=True)
            if index not in refused_positions and outcome.unit_id and outcome.unit_id in unexposed
        ),
    )


def _text_of(row: Any, name: str) -> str:
    text = row.get(name) if isinstance(row, dict) else ""
    return _replace_surrogates(text) if isinstance(text, str) else ""


def _count_malformed(refused: list[Refusal], now: datetime) -> None:
    """Count them under one reason: the parser's messages are unbounded."""
    names = {each.metric.replace("\x00", "") for each in refused}
    known = set(Metric.objects.filter(name__in=names).values_list("name", flat=True))
    malformed = [replace(each, reason=MALFORMED) for each in refused]
    count_refusals(malformed, known=known, now=now)


def _rows(body: Any) -> list[Any]:
    rows = body.get("outcomes") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise Invalid('The body must be {"outcomes": [...]}.')
    if len(rows) > OUTCOMES_MAX:
        raise Invalid(f"The batch has {len(rows)} outcomes; the limit is {OUTCOMES_MAX}.")
    return rows


def _outcome(row: Any, now: datetime) -> Outcome:
    fields = msgspec.convert(row, OutcomeRowInput)
    for name in ("event_id", "unit_id", "metric", "request_id"):
        if _replace_surrogates(text := getattr(fields, name) or "") != text:
            raise msgspec.ValidationError(f"{name} contains a lone surrogate")
    at = (fields.occurred_at or now).astimezone(UTC)
    outcome = Outcome(
        event_id=fields.event_id,
        unit_id=fields.unit_id or "",
        metric=fields.metric,
        value=float(fields.value),
        occurred_at_ms=round(at.timestamp() * 1_000),
        request_id=fields.request_id or "",
    )
    return with_unit(outcome)


def _replace_surrogates(text: str) -> str:
    """Return `text` with lone surrogates, which PostgreSQL cannot store, replaced by "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
