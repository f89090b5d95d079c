"""The bytes of published tables, kept in the process, and what changed between two of them.

A published table never changes, and its tag names its content: what is kept is never stale.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TypeVar

from apps.rollouts.models import PublishedTable
from contract.deltas import make_delta

# A table of ten thousand models has some ten megabytes; pollers have the newest or one before.
DOCUMENTS_MAX = 3
DELTAS_MAX = 32
# Generations are below 2^53.
DIGITS_MAX = 16
# A delta of more than this share of the whole table is not worth to be put together.
DELTA_SHARE_MAX = 0.5

K = TypeVar("K")
V = TypeVar("V")

_lock = Lock()
_documents: OrderedDict[str, bytes] = OrderedDict()
_deltas: OrderedDict[tuple[str, str], bytes | None] = OrderedDict()


def document_of(tag: str) -> bytes | None:
    """Return the table of `tag`; None where this database does not have it, or no longer."""
    with _lock:
        if (document := _documents.get(tag)) is not None:
            _documents.move_to_end(tag)
            return document
    number = tag.partition("-")[0]
    if not (number.isascii() and number.isdigit() and len(number) <= DIGITS_MAX):
        return None
    row = PublishedTable.objects.filter(pk=int(number)).first()
    if row is None or row.tag != tag:
        return None
    document = bytes(row.document)
    _keep(_documents, tag, document, DOCUMENTS_MAX)
    return document


def delta_to(tag: str, base: str) -> bytes | None:
    """Return what makes the table of `tag` from that of `base`; None where the whole is better."""
    with _lock:
        if (tag, base) in _deltas:
            return _deltas[tag, base]
    before, after = document_of(base), document_of(tag)
    if before is None or after is None:
        return None
    delta = make_delta(base, before, after)
    if delta is not None and len(delta) > DELTA_SHARE_MAX * len(after):
        delta = None
    _keep(_deltas, (tag, base), delta, DELTAS_MAX)
    return delta


def _keep(kept: OrderedDict[K, V], key: K, value: V, at_most: int) -> None:
    with _lock:
        kept[key] = value
        while len(kept) > at_most:
            kept.popitem(last=False)
