"""Says of each stream entry who sent it, or why it is not believed.

What it needs to know (tokens, homes) it reads from the database every few seconds, so that an entry
costs one HMAC over its bytes. With INTERLOCK_OWN_TOKENS_REQUIRED only what an instance sealed with
a token of its own counts; without it entries that bear no seal are taken as they were before there
were seals, and the token that instances share makes good seals too.
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
# What adds up cannot be repeated while its key is kept, which is for two days at least
# (`retention.declared`).
# Outcomes and exposures count once however old they are.
SEALED_WITHIN = timedelta(hours=36)


class Refused(Exception):
    """An entry that does not count; `instance` is the one in whose name it came, if we know it."""

    def __init__(self, reason: str, instance: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.instance = instance


@dataclass
class Known:
    """What the database said, and when."""

    now: datetime
    read_at: float
    # Roots of good tokens by instance, and of those that are good no more.
    good: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    gone: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    # Homes of live processes by instance.
    homes: dict[str, set[str]] = field(default_factory=dict)


class SealChecks:
    """One ingester's knowledge of who may send what."""

    def __init__(self) -> None:
        self._known: Known | None = None
        # Keys by root, instance and boot, of seals that were genuine.
        self._keys: dict[tuple[bytes, str, str], bytes] = {}

    def check(self, stream: str, data: bytes, sealed: bytes | None) -> Seal | None:
        """Return the seal of an entry before a byte of it is believed; None: it needs none.

        Raises Refused, django.db.DatabaseError.
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
            raise self._why(known, instance, seal, stream, data)
        homes = known.homes.get(instance)
        if homes and seal.home not in homes:
            raise Refused(Reason.SECOND, instance)
        return seal

    def check_batch(self, seal: Seal | None, batch: Batch) -> None:
        """Raise Refused when the batch is none that its sender may send now."""
        if seal is None:
            return
        instance = group_of(seal.instance)
        if group_of(batch.instance) != instance:
            raise Refused(Reason.FOREIGN, instance)
        adds_up = batch.windows or batch.shadows or batch.measurements or batch.refusals
        if adds_up and self._age_s(seal) > SEALED_WITHIN.total_seconds():
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

    def _why(self, known: Known, instance: str, seal: Seal, stream: str, data: bytes) -> Refused:
        gone = known.gone[instance]
        if not gone and not known.good[instance]:
            return Refused(Reason.UNKNOWN)
        was_good = any(
            is_genuine(boot_key(root, seal.instance, seal.boot), seal, stream, data)
            for root in gone
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
            of_its_kind = known.good if token.is_valid(now) else known.gone
            of_its_kind[token.instance].append(bytes.fromhex(token.seal_root))
        self._known = known
        return known
