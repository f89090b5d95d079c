"""Verifies the sender of each stream entry.

Tokens and homes are read from the database every READ_EVERY_S seconds, so that an entry costs one
HMAC over its bytes. With INTERLOCK_OWN_TOKENS_REQUIRED an entry needs a seal made with its
instance's own token. Without it, entries without a seal are accepted, and so are seals made with
the token that instances share.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic

from django.conf import settings

from apps.identity.models import InstanceToken
from apps.identity.refusals import Reason
from apps.lib.clock import database_now
from apps.rollouts.duplicate_instances import live_homes
from contract.message_signatures import Seal, boot_key, group_of, is_genuine, read_seal, seal_root
from contract.messages import Batch, MessageError

READ_EVERY_S = 2.0
KEYS_MAX = 10_000
# The maximum age of batches whose values are summed. They must not be applied twice, and the keys
# that detect a repetition are kept for at least two days (`retention.declared`). Outcomes and
# exposures have ids and count once at any age.
SEALED_WITHIN = timedelta(hours=36)


class Refused(Exception):
    """An entry is refused; `instance` is the claimed sender, or empty if it is unknown."""

    def __init__(self, reason: str, instance: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.instance = instance


@dataclass
class Known:
    """Tokens and homes from the database, and the time of reading them."""

    now: datetime
    read_at: float
    # Seal roots of valid tokens by instance, and of expired or revoked ones.
    good: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    revoked: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    # Homes of live processes by instance.
    homes: dict[str, set[str]] = field(default_factory=dict)


class SealChecks:
    """Verifies seals with one ingester's cache of tokens, homes and keys."""

    def __init__(self) -> None:
        self._known: Known | None = None
        # Keys of genuine seals by root, instance and boot.
        self._keys: dict[tuple[bytes, str, str], bytes] = {}

    def check(self, stream: str, data: bytes, sealed: bytes | None) -> Seal | None:
        """Verify and return the seal of an entry; return None if it has none and needs none.

        Must be called before the entry is decoded.

        Raises:
            Refused: the seal is missing, forged, revoked or from a second home.
            django.db.DatabaseError: the tokens could not be read.
        """
        if sealed is None:
            if settings.OWN_TOKENS_REQUIRED:
                raise Refused(Reason.UNSEALED)
            return None
        try:
            seal = read_seal(sealed)
        except MessageError:
            raise Refused(Reason.FORGED) from None
        known, instance = self._read(), group_of(seal.instance)
        if not self._is_genuine(known.good[instance] + self._shared(), seal, stream, data):
            raise self._refusal(known, instance, seal, stream, data)
        homes = known.homes.get(instance)
        if homes and seal.home not in homes:
            raise Refused(Reason.SECOND, instance)
        return seal

    def check_batch(self, seal: Seal | None, batch: Batch) -> None:
        """Raise Refused if the batch has another sender than its seal, or is too old."""
        if seal is None:
            return
        instance = group_of(seal.instance)
        if group_of(batch.instance) != instance:
            raise Refused(Reason.FOREIGN, instance)
        is_summed = batch.windows or batch.shadows or batch.measurements or batch.refusals
        if is_summed and self._age_s(seal) > SEALED_WITHIN.total_seconds():
            raise Refused(Reason.OLD, instance)

    def _is_genuine(self, roots: list[bytes], seal: Seal, stream: str, data: bytes) -> bool:
        for root in roots:
            place = (root, seal.instance, seal.boot)
            key = self._keys.get(place) or boot_key(*place)
            if is_genuine(key, seal, stream, data):
                if len(self._keys) >= KEYS_MAX:
                    self._keys.clear()
                self._keys[place] = key
                return True
        return False

    def _refusal(
        self, known: Known, instance: str, seal: Seal, stream: str, data: bytes
    ) -> Refused:
        revoked = known.revoked[instance]
        if not revoked and not known.good[instance]:
            return Refused(Reason.UNKNOWN)
        was_good = any(
            is_genuine(boot_key(root, seal.instance, seal.boot), seal, stream, data)
            for root in revoked
        )
        return Refused(Reason.REVOKED if was_good else Reason.FORGED, instance)

    @staticmethod
    def _shared() -> list[bytes]:
        if settings.OWN_TOKENS_REQUIRED or not settings.INSTANCE_TOKEN:
            return []
        return [seal_root(settings.INSTANCE_TOKEN)]

    def _age_s(self, seal: Seal) -> float:
        known = self._read()
        now = known.now + timedelta(seconds=monotonic() - known.read_at)
        return now.timestamp() - seal.at_ms / 1_000

    def _read(self) -> Known:
        if self._known is not None and monotonic() - self._known.read_at < READ_EVERY_S:
            return self._known
        now = database_now()
        known = Known(now, monotonic(), homes=live_homes(now))
        for token in InstanceToken.objects.all():
            roots = known.good if token.is_valid(now) else known.revoked
            roots[token.instance].append(bytes.fromhex(token.seal_root))
        self._known = known
        return known
