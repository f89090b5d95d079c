"""In-process cache of published tables and of deltas between them.

A published table never changes and its tag identifies its content, so that entries never go stale.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TypeVar

from apps.rollouts.models import PublishedTable
from contract.deltas import make_delta

# A table of 10,000 models has about 10 MB; pollers have the newest table or a recent one.
DOCUMENTS_MAX = 3
DELTAS_MAX = 32
# Generations are below 2^53.
DIGITS_MAX = 16
# A delta above this share of the table size is not sent; the table is sent instead.
DELTA_SHARE_MAX = 0.5

K = TypeVar("K")
V = TypeVar("V")

_lock = Lock()
_documents: OrderedDict[str, bytes] = OrderedDict()
_deltas: OrderedDict[tuple[str, str], bytes | None] = OrderedDict()


def document_of(tag: str) -> bytes | None:
    """Return the table of `tag`; None if it is not in this database (any more)."""
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
    """Return the delta from the table `base` to `tag`; None if the whole table is better."""
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
