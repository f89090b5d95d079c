"""Admission of requests: API key to tenant, allowed models, quota and concurrency.

Keys are compared by their SHA-256 only; neither keys nor digests are logged. The usage of a tenant
outlives the table: a new table changes its limits in place. If the table has no tenants and
requires no key, credentials of requests are ignored, and all clients are anonymous.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import sha256
from math import ceil
from time import monotonic
from typing import Protocol

from contract.request_ids import Seal
from contract.routing import Name, RoutingTable, Tenant
from dataplane.errors import Refusal
from dataplane.fair_queue import NORMAL, PRIORITIES
from dataplane.quotas.bucket import Bucket
from dataplane.quotas.ledger import Entry, Ledger, LedgerFull
from dataplane.quotas.limits import Limits, Quota

log = logging.getLogger("interlock.dataplane")

TIMEOUT_HEADER = b"x-interlock-timeout-ms"
# A body counts in a quota as one more request for each of this many bytes.
REQUEST_BYTES = 256 * 1024
# Distinct headers of known keys that are cached; keys come with the table, so they are few.
_MEMO_MAX = 10_000
_RETRY_AFTER_MAX_S = 3_600
# Enough for any timeout of a model; more digits would only cost time.
_TIMEOUT_DIGITS_MAX = 9


class Tenancy:
    """The state of one tenant in this process; if not `limited`, requests skip the limit checks."""

    __slots__ = (
        "has_slot_limit",
        "in_flight",
        "limited",
        "models",
        "name",
        "priority",
        "quota",
        "rate",
        "seal",
    )

    def __init__(self, name: str, quota: Quota | None = None) -> None:
        # Empty for anonymous clients.
        self.name = name
        # The priority class in the fair queue.
        self.priority = NORMAL
        # The models that the key allows; None for all of them.
        self.models: frozenset[Name] | None = None
        # Seals the ids of its answers; None where ids need no seal.
        self.seal: Seal | None = None
        # True if there is any limit to check.
        self.limited = False
        # Requests in progress, counted while limited.
        self.in_flight = 0
        # Counts the usage.
        self.quota: Quota = quota if quota is not None else Bucket()
        # Whether the number of concurrent requests is limited.
        self.has_slot_limit = False
        # Tokens per second, for the message.
        self.rate = 0.0

    def limit(self, tenant: Tenant) -> None:
        """Apply the limits of `tenant`; keep the usage so far."""
        self.priority = PRIORITIES[tenant.priority]
        limits = Limits.of(tenant)
        self.quota.limit(limits)
        self.rate = limits.rate or 0.0
        self.limited = limits.are_any
        self.has_slot_limit = limits.slots is not None

    def check_model(self, name: Name) -> None:
        """Raise Refusal (403) for a model that the key does not allow."""
        if self.models is not None and name not in self.models:
            raise Refusal(403, "model_not_allowed", f"the API key does not allow model {name!r}")

    def enter(self, now: float, cost: float = 1.0) -> None:
        """Count a request in. Raises Refusal (429), in which case nothing is counted."""
        quota = self.quota
        if self.has_slot_limit and not quota.has_slot(now, self.in_flight):
            message = "the tenant has reached its limit of concurrent requests"
            raise Refusal(429, "too_many_concurrent", message, retry_after_s=1)
        wait_s = quota.take(now, cost)
        if wait_s > 0:
            if self.has_slot_limit:
                quota.note(self.in_flight)
            raise Refusal(
                429,
                "quota_exceeded",
                f"the tenant's quota of {self.rate:g} requests per second is used up",
                retry_after_s=max(1, ceil(min(wait_s, _RETRY_AFTER_MAX_S))),
            )
        self.in_flight += 1

    def charge(self, cost: float) -> None:
        """Charge the cost of a request beyond the cost that it entered with."""
        self.quota.charge(cost)

    def leave(self) -> None:
        """Count a request out."""
        self.in_flight -= 1
        if self.has_slot_limit:
            self.quota.note(self.in_flight)


class LimitedKeyTenancy(Tenancy):
    """A tenant with a key for some models only; its usage counts for the whole tenant."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Tenancy, models: frozenset[Name]) -> None:
        super().__init__(whole.name)
        # The tenant that the key belongs to.
        self._whole = whole
        self.models = models
        self.priority, self.limited, self.seal = whole.priority, whole.limited, whole.seal

    def enter(self, now: float, cost: float = 1.0) -> None:
        self._whole.enter(now, cost)

    def charge(self, cost: float) -> None:
        self._whole.charge(cost)

    def leave(self) -> None:
        self._whole.leave()


ANONYMOUS = Tenancy("")


class AdmissionRequest(Protocol):
    """A request as admission sees it; it calls `tenancy.leave` exactly once, with its answer."""

    headers: dict[bytes, bytes]
    tenancy: Tenancy | None


class Admission:
    """Admits requests by the tenants of the applied table."""

    def __init__(
        self,
        share: int = 1,
        clock: Callable[[], float] = monotonic,
        ledger: Ledger | None = None,
    ) -> None:
        # Number of processes that share each tenant's limits if there is no ledger.
        self._share = share
        # The limits that the workers of the instance share.
        self.ledger = ledger
        # Seconds, for the buckets.
        self._clock = clock
        # No key is required and none exists: nothing is checked.
        self._open = True
        # A request without a key is refused.
        self._key_required = False
        # Requests refused for lack of capacity, by reason: quotas here, queues in the prediction.
        self.sheds: dict[str, int] = {}
        # Whether any tenant has a limit.
        self._has_limits = False
        # Tenants with limits, by their line in the ledger.
        self._lines: dict[int, tuple[Name, Limits]] = {}
        # Clients without a key, if there are tenants or secrets.
        self._anonymous = ANONYMOUS
        # By name; kept across tables.
        self._tenancies: dict[str, Tenancy] = {}
        # By SHA-256 of the key, in hex.
        self._digests: dict[str, Tenancy] = {}
        # By the value of `x-api-key`, for keys already recognised.
        self._by_key: dict[bytes | None, Tenancy] = {}
        # By the value of `authorization`, for keys already recognised.
        self._by_authorization: dict[bytes | None, Tenancy] = {}

    def apply(self, table: RoutingTable) -> None:
        """Use the tenants of `table` from the next request on."""
        before, self._tenancies = self._tenancies, {}
        self._digests = {}
        self._by_key = {}
        self._by_authorization = {}
        secret = table.id_secret
        self._anonymous = ANONYMOUS
        if secret:
            self._anonymous = Tenancy("")
            self._anonymous.seal = Seal(secret, "")
        for name, tenant in table.tenants.items():
            tenancy = before.get(name) or Tenancy(name, self._quota(name))
            self._tenancies[name] = tenancy
            tenancy.limit(tenant)
            tenancy.seal = Seal(secret, name) if secret else None
            for digest in tenant.keys:
                self._digests[digest] = tenancy
            for digest, models in tenant.limited_keys.items():
                self._digests[digest] = LimitedKeyTenancy(tenancy, frozenset(models))
        self._lines = {
            tenancy.quota.number: (name, Limits.of(table.tenants[name]))
            for name, tenancy in self._tenancies.items()
            if tenancy.limited and isinstance(tenancy.quota, Entry)
        }
        self._has_limits = any(tenancy.limited for tenancy in self._tenancies.values())
        self._key_required = table.key_required
        self._open = not table.tenants and not table.key_required

    def _quota(self, name: Name) -> Quota:
        if self.ledger is not None:
            try:
                return Entry(self.ledger, self.ledger.find(name))
            except LedgerFull:
                log.warning(
                    "quotas.ledger_full: each worker enforces a share of the limits of %s", name
                )
        return Bucket(self._share)

    def limited_lines(self) -> dict[int, tuple[Name, Limits]]:
        """Return the tenants with limits, by their line in the ledger."""
        return self._lines

    @property
    def quotas(self) -> str:
        """How quotas are enforced: `leased` across the fleet, `shared` in this instance, `none`."""
        if not self._has_limits:
            return "none"
        ledger = self.ledger
        return "leased" if ledger is not None and ledger.is_leased(self._clock()) else "shared"

    def admit(self, request: AdmissionRequest, size: int = 0) -> Tenancy:
        """Return a request's tenant, and count its `size` bytes in. Raises Refusal (401, 429)."""
        if self._open:
            return ANONYMOUS
        headers = request.headers
        key = headers.get(b"x-api-key")
        if key is not None:
            tenancy = self._by_key.get(key) or self._recognise(key, key, self._by_key)
        else:
            authorization = headers.get(b"authorization")
            tenancy = self._by_authorization.get(authorization) or self._authorized(authorization)
        if tenancy.limited:
            try:
                tenancy.enter(self._clock(), 1.0 + size // REQUEST_BYTES)
            except Refusal as refusal:
                self.count_shed(refusal.code)
                raise
            request.tenancy = tenancy
        return tenancy

    def count_shed(self, reason: str) -> None:
        """Count a request that is refused for lack of capacity."""
        self.sheds[reason] = self.sheds.get(reason, 0) + 1

    def _authorized(self, value: bytes | None) -> Tenancy:
        scheme, _, key = (value or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return self._recognise(value, key.strip(), self._by_authorization)
        if self._key_required:
            raise _unauthenticated("an API key is required: 'authorization: Bearer KEY'")
        return self._anonymous

    def _recognise(
        self, value: bytes | None, key: bytes, memo: dict[bytes | None, Tenancy]
    ) -> Tenancy:
        tenancy = self._digests.get(sha256(key).hexdigest())
        if tenancy is None:
            raise _unauthenticated("unknown API key")
        if len(memo) >= _MEMO_MAX:
            memo.clear()
        memo[value] = tenancy
        return tenancy


def read_timeout_s(headers: dict[bytes, bytes], limit_s: float) -> float:
    """Return how long the client waits, at most `limit_s`. Raises Refusal (400)."""
    value = headers.get(TIMEOUT_HEADER)
    if value is None:
        return limit_s
    if not value.isdigit() or len(value) > _TIMEOUT_DIGITS_MAX or int(value) == 0:
        raise Refusal(
            400,
            "wrong_timeout",
            f"{TIMEOUT_HEADER.decode()} must be a positive whole number of milliseconds",
        )
    return min(int(value) / 1000, limit_s)


def _unauthenticated(message: str) -> Refusal:
    return Refusal(401, "unauthenticated", message)
