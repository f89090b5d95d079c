"""Outcomes that came by REST: each row is read for itself, so that the report can name it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from apps.experiments.ingestion import OutcomeReport, record_outcomes
from apps.experiments.models import Metric
from apps.experiments.refusals import Origin, Refusal, count_refusals
from apps.experiments.unexposed import strangers_among
from apps.lib.errors import Invalid
from contract.messages import Outcome
from contract.refusals import MALFORMED
from contract.request_ids import RequestIdError, with_unit

OUTCOMES_MAX = 10_000
# How refusals say that outcomes came by this API.
VIA = "REST API"
BODY_BYTES_MAX = 16 * 1024**2


class TooLarge(Invalid):
    status = 413
    code = "too_large"


def check_length(header: str | None) -> None:
    """Raise TooLarge when the Content-Length says more than is read."""
    length = int(header) if header and header.isdecimal() else 0
    if length > BODY_BYTES_MAX:
        raise TooLarge(f"The body has {length} bytes; it may have {BODY_BYTES_MAX}.")


class OutcomeRowInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    event_id: str
    metric: str
    value: float | bool
    unit_id: str | None = ""
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    request_id: str | None = ""


def parse_and_record(body: Any, now: datetime, sender: str = "") -> OutcomeReport:
    """Record what of `{"outcomes": [...]}` can be used; the report names the rest by position, and
    those of units that met no experiment. Refusals are counted as `sender`'s.

    Raises Invalid when the body as a whole is of another form, or too long; nothing was recorded.
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
            refused.append(Refusal(index, event_id, metric, _whole(str(error)), origin))
    _count_malformed(refused, now)
    report = record_outcomes(outcomes, now, origin)
    refused += [replace(refusal, index=positions[refusal.index]) for refusal in report.refused]
    bad = {refusal.index for refusal in refused}
    unmet = strangers_among([outcome.unit_id for outcome in outcomes])
    return replace(
        report,
        refused=tuple(sorted(refused, key=lambda refusal: refusal.index)),
        strangers=tuple(
            index
            for index, outcome in zip(positions, outcomes, strict=True)
            if index not in bad and outcome.unit_id and outcome.unit_id in unmet
        ),
    )


def _text_of(row: Any, name: str) -> str:
    text = row.get(name) if isinstance(row, dict) else ""
    return _whole(text) if isinstance(text, str) else ""


def _count_malformed(refused: list[Refusal], now: datetime) -> None:
    """Count them for one reason: what each says of itself has no end."""
    named = {each.metric.replace("\x00", "") for each in refused}
    known = set(Metric.objects.filter(name__in=named).values_list("name", flat=True))
    alike = [replace(each, reason=MALFORMED) for each in refused]
    count_refusals(alike, known=known, now=now)


def _rows(body: Any) -> list[Any]:
    rows = body.get("outcomes") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise Invalid('The body must be {"outcomes": [...]}.')
    if len(rows) > OUTCOMES_MAX:
        raise Invalid(f"A batch may have {OUTCOMES_MAX} outcomes, not {len(rows)}.")
    return rows


def _outcome(row: Any, now: datetime) -> Outcome:
    given = msgspec.convert(row, OutcomeRowInput)
    for name in ("event_id", "unit_id", "metric", "request_id"):
        if _whole(text := getattr(given, name) or "") != text:
            raise msgspec.ValidationError(f"{name} holds half a character (a lone surrogate)")
    at = (given.occurred_at or now).astimezone(UTC)
    sent = Outcome(
        event_id=given.event_id,
        unit_id=given.unit_id or "",
        metric=given.metric,
        value=float(given.value),
        occurred_at_ms=round(at.timestamp() * 1_000),
        request_id=given.request_id or "",
    )
    return with_unit(sent)


def _whole(text: str) -> str:
    """Return `text` without halves of characters, which JSON can name and nobody can store."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
