"""Maps paths to handlers: all HTTP endpoints of the data plane.

Handlers answer through the exchange, at once or later; a `Refusal` that they raise becomes the
answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from itertools import count
from time import monotonic
from urllib.parse import unquote

import orjson

from dataplane import protocol_metadata
from dataplane.admission import Tenancy
from dataplane.emergency_pin import Operator, Pins
from dataplane.errors import Refusal, bad_request, unavailable
from dataplane.exchange import Exchange
from dataplane.heartbeat import Heartbeat
from dataplane.metrics import Page
from dataplane.metrics_page import collect
from dataplane.outcome_refusals import TRUSTED_S, without_refused
from dataplane.outcomes import Outcomes, check_sender, invalid, read_outcomes, sent_by
from dataplane.predict import Predictor
from dataplane.reading import Job
from dataplane.reading.queue import Answer
from dataplane.request_bounds import is_cheap
from dataplane.scrapes import Scrapes
from dataplane.staleness import Staleness
from dataplane.stream import Publisher
from dataplane.sync import Sync

log = logging.getLogger("interlock.dataplane")

ROUTES_MAX = 4_096
# A background loop without a turn for this long hangs, and the instance is not ready.
LOOP_AGE_MAX_S = 60.0
# A large list of outcomes waits at most this long to be read.
OUTCOMES_WAIT_S = 10.0
# In place of a method: the handler checks the method itself.
ANY = b""

# The first character after the host of a URL.
_AUTHORITY_END = re.compile(rb"[/?]")

Handler = Callable[[Exchange], None]
Route = tuple[bytes, Handler]


class Application:
    """Answers every request of every connection."""

    def __init__(
        self,
        predictor: Predictor,
        publisher: Publisher,
        sync: Sync,
        boot: str,
        pins: Pins,
        operator_token: str,
        staleness: Staleness,
    ) -> None:
        # Answers predictions.
        self.predictor = predictor
        # The applied table.
        self._serving = predictor.serving
        # Accepts outcomes.
        self._publisher = publisher
        # Keeps the table current; its loops count for readiness.
        self._sync = sync
        # Decides when the table is too old to be ready.
        self._staleness = staleness
        # The prefix of generated ids, for outcomes without one; unique across restarts.
        self._boot = boot
        # The counter in generated ids.
        self._ids = count(1)
        # Set when the stop begins: readiness fails from then on.
        self.stopping = False
        # Routes by request target; cleared when full, because clients can invent targets.
        self._routes: dict[bytes, Route] = {}
        # Renders the page for Prometheus.
        self.scrapes = Scrapes(self._page)
        # Pins models to stable for the operator.
        self.operator = Operator(self._serving, pins, operator_token)
        only = self.operator.only
        # Paths without a model name.
        self._fixed: dict[str, Route] = {
            "/v2": (b"GET", self._server_metadata),
            "/v2/models/stats": (
                b"GET",
                only(lambda exchange: self._statistics(exchange, None, None)),
            ),
            "/v2/health/live": (b"GET", self._live),
            "/v2/health/ready": (b"GET", self._ready),
            "/predict": (b"POST", predictor.plain),
            "/outcomes": (b"POST", self._outcomes),
            "/metrics": (b"GET", only(self.scrapes.answer)),
            "/operator/pin": (ANY, self.operator.pin),
            "/operator/unpin": (b"POST", self.operator.unpin),
        }

    def __call__(self, exchange: Exchange) -> None:
        try:
            route = self._routes.get(exchange.target)
            if route is None:
                route = self._learn(exchange.target)
            method, handler = route
            if exchange.method != method:
                _check_method(exchange.method, method)
            handler(exchange)
        except Refusal as refusal:
            exchange.refuse(refusal, self.predictor.generation_line())
        except Exception:
            log.exception("a request failed: %r %r", exchange.method, exchange.target[:200])
            exchange.refuse(Refusal(500, "internal_error", "the request could not be handled"))

    @property
    def heartbeats(self) -> list[Heartbeat]:
        return [*self._sync.heartbeats, *self._publisher.heartbeats]

    # --- routing -------------------------------------------------------------------------------

    def _learn(self, target: bytes) -> Route:
        route = self._resolve(target)
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[target] = route
        return route

    def _resolve(self, target: bytes) -> Route:
        path = _path(target).decode("ascii", "replace")
        if len(path) > 1:
            path = path.rstrip("/")
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        parts = [unquote(part) for part in path.split("/")]
        if len(parts) >= 4 and parts[:3] == ["", "v2", "models"]:
            name, rest = parts[3], parts[4:]
            version = None
            if len(rest) >= 2 and rest[0] == "versions":
                version, rest = rest[1], rest[2:]
            route = self._model_route(name, version, rest)
            if route is not None:
                return route
        if parts[1:2] == ["v2"] and (refusal := protocol_metadata.unsupported_path(parts[2:])):
            raise refusal
        raise Refusal(404, "path_not_found", f"unknown path {path[:200]!r}")

    def _model_route(self, name: str, version: str | None, rest: list[str]) -> Route | None:
        only = self.operator.only
        if rest == ["infer"]:
            infer = self.predictor.infer
            return b"POST", lambda exchange: infer(exchange, name, version)
        if rest == ["ready"]:
            return b"GET", lambda exchange: self._model_ready(exchange, name, version)
        if rest == []:
            return b"GET", lambda exchange: self._model_metadata(exchange, name, version)
        if rest == ["config"]:
            return b"GET", only(lambda exchange: self._model_config(exchange, name, version))
        if rest == ["stats"]:
            return b"GET", only(lambda exchange: self._statistics(exchange, name, version))
        return None

    # --- health and metadata -------------------------------------------------------------------

    def _server_metadata(self, exchange: Exchange) -> None:
        _answer(exchange, protocol_metadata.server_metadata())

    def _live(self, exchange: Exchange) -> None:
        _answer(exchange, {"live": True})

    def _ready(self, exchange: Exchange) -> None:
        reason = self.not_ready()
        if reason is not None:
            raise unavailable("not_ready", reason)
        _answer(
            exchange,
            {
                "ready": True,
                "generation": self._serving.generation,
                "table_age_s": round(self._sync.table_age_s, 3),
                "pinned": sorted(self._serving.pinned),
                "quotas": self._serving.admission.quotas,
            },
        )

    def not_ready(self) -> str | None:
        """Return why the instance should get no traffic, or None if it is ready."""
        if self.stopping:
            return "the instance is stopping"
        if self._serving.table is None:
            return "no routing table was received yet"
        stale = self._staleness.unready_reason()
        if stale is not None:
            return stale
        for heartbeat in self.heartbeats:
            if heartbeat.age_s > LOOP_AGE_MAX_S:
                return f"the {heartbeat.name} loop has not turned for {heartbeat.age_s:.0f} s"
        return None

    def _model_ready(self, exchange: Exchange, name: str, version: str | None) -> None:
        protocol_metadata.check_ready(self._serving.model(name), version)
        _answer(exchange, {"name": name, "ready": True})

    def _model_metadata(self, exchange: Exchange, name: str, version: str | None) -> None:
        _answer(exchange, protocol_metadata.model_metadata(self._serving.model(name), version))

    def _model_config(self, exchange: Exchange, name: str, version: str | None) -> None:
        _answer(exchange, protocol_metadata.model_config(self._serving.model(name), version))

    def _statistics(self, exchange: Exchange, name: str | None, version: str | None) -> None:
        _answer(exchange, protocol_metadata.model_statistics(self._serving, name, version))

    async def _page(self) -> Page:
        return await collect(self._serving, self._publisher, self._sync, self.heartbeats)

    # --- outcomes ------------------------------------------------------------------------------

    def _outcomes(self, exchange: Exchange) -> None:
        sender = self._serving.admission.admit(exchange, len(exchange.body))
        now_ms = int(time.time() * 1000)
        if exchange.coding is None and is_cheap(exchange.body):
            body = exchange.body
            self._take(exchange, sender, lambda: read_outcomes(body, now_ms, self._new_id))
            return
        reading = self.predictor.reading
        job = Job(
            kind="outcomes",
            body=exchange.body,
            coding=exchange.coding or b"",
            bytes_max=reading.bytes_max,
            now_ms=now_ms,
            id_prefix=self._new_id(),
        )
        exchange.body = b""

        def done(answer: Answer) -> None:
            # No caller catches exceptions here.
            try:
                self._take(exchange, sender, lambda: _outcomes_of(answer))
            except Refusal as refusal:
                exchange.refuse(refusal, self.predictor.generation_line())

        reading.read(exchange, job, monotonic() + OUTCOMES_WAIT_S, done)

    def _take(self, exchange: Exchange, sender: Tenancy, read: Callable[[], Outcomes]) -> None:
        """Store the outcomes from `read`, and count the refused ones. Raises Refusal."""
        table = self._serving.table
        rules = table.metrics if table is not None else None
        refusals, tenant = self._publisher.refusals, sender.name
        try:
            outcomes = read()
            check_sender(outcomes, sender)
            if rules is not None and self._sync.is_confirmed(TRUSTED_S):
                outcomes = without_refused(outcomes, rules)
            if outcomes.refused and not outcomes:
                raise invalid(outcomes.refused, len(outcomes.refused))
        except Refusal as refusal:
            refusals.count(refusal.details or (), tenant, rules or ())
            raise
        refusals.count(outcomes.refused, tenant, rules or ())
        self._store(exchange, outcomes, sender)

    def _store(self, exchange: Exchange, outcomes: Outcomes, sender: Tenancy) -> None:
        if not outcomes:
            raise bad_request("malformed_request", "the list of outcomes is empty")

        def stored(done: asyncio.Future[None]) -> None:
            error = done.exception()
            if error is None:
                answer: dict[str, object] = {"accepted": len(outcomes)}
                if outcomes.refused:
                    answer["refused"] = outcomes.refused
                exchange.respond(202, orjson.dumps(answer))
            else:
                exchange.refuse(unavailable("outcomes_not_stored", str(error), 5))

        self._publisher.accept(sent_by(outcomes, sender)).add_done_callback(stored)

    def _new_id(self) -> str:
        return f"{self._boot}-{next(self._ids):x}"


def _outcomes_of(answer: Answer) -> Outcomes:
    if isinstance(answer, Refusal):
        raise answer
    return Outcomes(answer.outcomes or (), answer.refused or ())


def _path(target: bytes) -> bytes:
    """Return the path of a request target, which may be a whole URL (RFC 9112, 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
        target = rest[len(authority) :]
        if not target.startswith(b"/"):
            target = b"/" + target
    return target.partition(b"?")[0]


def _check_method(method: bytes, expected: bytes) -> None:
    if expected == ANY or (method == b"HEAD" and expected == b"GET"):
        return
    message = f"method not allowed; expected {expected.decode()}"
    raise Refusal(405, "method_not_allowed", message, allow=expected)


def _answer(exchange: Exchange, document: dict[str, object]) -> None:
    exchange.respond(200, orjson.dumps(document))
