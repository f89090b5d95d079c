"""Messages from the data plane: telemetry windows, exposures, outcomes, instance reports.

Windows, exposures and outcomes travel in a `Batch` over a Redis stream, at least once; the key
`(instance, boot, stream, sequence)` lets the consumer apply each batch exactly once. Reports are
posted together with the poll for the routing table. Times are Unix milliseconds.
"""

from __future__ import annotations

import msgspec

from contract import SCHEMA
from contract.histogram import merge
from contract.refusals import OutcomeRefusals

STREAM_TELEMETRY = "interlock:telemetry"
STREAM_EXPOSURES = "interlock:exposures"
STREAM_OUTCOMES = "interlock:outcomes"
STREAMS = (STREAM_TELEMETRY, STREAM_EXPOSURES, STREAM_OUTCOMES)
# Values that a unit sketch keeps; the standard error of its estimate is 1/√(k − 2), 4.4 %.
SKETCH_K = 512
# The field of a stream entry that holds the batch.
FIELD = b"batch"


class MessageError(ValueError):
    """A message that cannot be parsed; the text gives the reason."""


# Clusters that the units of a split are counted in, to measure how correlated a unit's requests
# are.
CLUSTERS = 32


class ClusterCounts(msgspec.Struct, frozen=True, array_like=True):
    """The counts of a window for one cluster; a cluster is a share of the units, by hash.

    A unit is always in the same cluster, on every instance; a request without a unit is in the
    cluster of its API key, or else of its client's address. `units` are distinct units assigned in
    the check interval; `assigned` are those and the requests without a unit; `unanswered` are those
    among the assigned that the version left without an answer. `n`, `errors` and `latency` are as
    in the window.
    """

    units: int = 0
    assigned: int = 0
    unanswered: int = 0
    n: int = 0
    errors: int = 0
    latency: dict[int, int] = {}

    def merge(self, other: ClusterCounts) -> ClusterCounts:
        return ClusterCounts(
            self.units + other.units,
            self.assigned + other.assigned,
            self.unanswered + other.unanswered,
            self.n + other.n,
            self.errors + other.errors,
            merge([self.latency, other.latency]),
        )


class Ends(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the requests that a version was assigned ended; each ends in exactly one way.

    `answered`: the version answered. `failed`: the version failed, and no other answered.
    `fell_back`: stable answered instead. `expired`: the client's deadline passed. `shed`: there was
    no capacity. `abandoned`: the client hung up. `refused`: no version accepts such a request.
    `cached`: the cache answered. `bypassed`: the version's circuit breaker was open, and stable
    answered.
    """

    answered: int = 0
    failed: int = 0
    fell_back: int = 0
    expired: int = 0
    shed: int = 0
    abandoned: int = 0
    refused: int = 0
    cached: int = 0
    bypassed: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__struct_fields__)


class TelemetryWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One instance's counts for one (model, version, variant, generation) over about a second.

    `units` and `unit_errors` count distinct units, and units with at least one error, that this
    instance had not yet counted in the check interval that began at `interval_started_at_ms`;
    requests without a unit are in `anonymous` and `anonymous_errors`, where each request counts by
    itself. `errors` are failures of Interlock or of the version (never a client's bad request), and
    include requests that then fell back to stable and were answered. `cache_hits` were answered
    from the cache and are in none of the counts before. `latency` is the sparse histogram of
    `contract.histogram` over the answers that the version computed.

    `assigned` measures the actual split: distinct units, and requests without one, that were
    assigned here in the interval, however they ended. `units` cannot be used for that: the cache
    answers some requests, and fewer of a new version. `unanswered` are those among the assigned,
    each once per interval, with at least one request that the version did not answer: it failed,
    was late, had no capacity or was not tried. They are counted as requests end, which may be in
    the next interval, so an interval can have more unanswered than assigned. `assigned_requests`
    are all requests that were assigned here, and `ends` how requests ended; a request in progress
    at the end of a window is in `assigned_requests` of this window and in `ends` of a later one.
    `clusters` are counts by cluster, in splits only.

    `variant` is `stable`, `canary` or `baseline`, the name of a variant in an experiment, or
    `explicit` where the request named its version and so bypassed the split. `split` is the id of
    the rollout or experiment, empty without one.
    """

    model: str
    version: str
    variant: str
    generation: int
    split: str
    started_at_ms: int
    ended_at_ms: int
    interval_started_at_ms: int
    requests: int = 0
    errors: int = 0
    fallbacks: int = 0
    units: int = 0
    unit_errors: int = 0
    anonymous: int = 0
    anonymous_errors: int = 0
    cache_hits: int = 0
    latency: dict[int, int] = {}
    assigned: int = 0
    unanswered: int = 0
    assigned_requests: int = 0
    ends: Ends = Ends()
    clusters: dict[int, ClusterCounts] = {}


class ShadowWindow(msgspec.Struct, frozen=True, kw_only=True):
    """How the answers of a shadow `version` differed from those of `stable`, over about a second.

    `compared` shadow requests had both answers, with `rows` rows in total. `flips` are rows whose
    predicted class differs, `beyond_tolerance` rows with a number that differs by more than the
    shadow's tolerance; `largest_difference` is absolute. `rank_correlation_sum` adds Spearman's
    coefficient of each of the `ranked` rows that have at least two scores. `errors` are requests
    that the shadow failed, `dropped` those that its budget did not allow. `latency` is the shadow's
    own.
    """

    model: str
    version: str
    stable: str
    generation: int
    shadow: str
    started_at_ms: int
    ended_at_ms: int
    compared: int = 0
    rows: int = 0
    flips: int = 0
    beyond_tolerance: int = 0
    largest_difference: float = 0.0
    rank_correlation_sum: float = 0.0
    ranked: int = 0
    errors: int = 0
    dropped: int = 0
    latency: dict[int, int] = {}


class ShadowPair(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answers of stable and of a shadow to one request of one row.

    `shadow` is the shadow's id, `request` the id of stable's answer without model and version
    (`contract.request_ids.answer_key`), `unit` is empty for a request without one, and `at_ms` is
    when stable answered. A class is the first label of the answer if that is a number, or else the
    index of the largest score; a score is the only floating-point number of the answer, or the
    second of two. None if the answer has none. `tenant` sent the request; empty for an anonymous
    client, None if the data plane does not report it.
    """

    shadow: str
    request: str
    at_ms: int
    unit: str = ""
    tenant: str | None = None
    stable_class: float | None = None
    shadow_class: float | None = None
    stable_score: float | None = None
    shadow_score: float | None = None


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """The first time this instance assigned a request of `unit`, by `tenant`, to `variant`.

    `experiment` is the id of the split: of an experiment, or of a rollout whose split has
    `exposures`, where `variant` is `canary`, `stable` or `baseline`. A unit that is assigned to two
    variants, because the canary's weight rose in between, has an exposure to each. In an experiment
    with a hold-out `variant` may be `holdout`. `tenant` is empty for an anonymous client;
    `attributes` are the values of the headers that the split names in `dimensions`.
    """

    experiment: str
    unit: str
    variant: str
    version: str
    at_ms: int
    tenant: str = ""
    attributes: dict[str, str] = {}


class UnitMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of `unit` by this instance, in an experiment whose split is `measured`.

    Counts since the last report: `requests` that the variant got, of which `errors` had no answer
    of its version (whether or not stable answered) and `cache_hits` were answered from the cache.
    Requests that no version accepts are not counted. `latency_us` is the sum over the `requests -
    errors - cache_hits` that the version answered.
    """

    experiment: str
    unit: str
    variant: str
    requests: int
    errors: int = 0
    cache_hits: int = 0
    latency_us: int = 0


class UnitSketch(msgspec.Struct, frozen=True, kw_only=True):
    """The units that sent requests to `model` in one hour: a k-minimum-values sketch.

    `hour` counts from 1970. `smallest` are the `SKETCH_K` smallest distinct values of
    xxh3_64(unit), ascending, or all of them if there are fewer. Sketches merge by keeping the
    smallest of both.
    """

    model: str
    hour: int
    smallest: tuple[int, ...]


# Both planes refuse an outcome whose time is further away than this: a wrong clock, or a wrong unit
# of time.
OUTCOME_AHEAD_MAX_S = 3_600
OUTCOME_AGE_MAX_S = 365 * 86_400
# Larger values overflow when squared, and are no real measurement.
OUTCOME_VALUE_MAX = 1e100


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A measured result for a unit; the same `event_id` twice counts once.

    `request_id` is the id of the prediction that it is about (`contract.request_ids`), or empty.
    With it `unit_id` may be empty, for a request without a unit: the outcome then counts for the
    version.

    `tenant` sent it, empty for an anonymous client: it counts for units of that tenant's requests.
    None if the control plane itself accepted it, or a data plane that does not report tenants.
    `models` are those that the sender's key is limited to, empty for all: it counts for them alone.
    """

    event_id: str
    unit_id: str
    metric: str
    value: float
    occurred_at_ms: int
    request_id: str = ""
    tenant: str | None = None
    models: tuple[str, ...] = ()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One stream entry; only the lists that belong to its stream are filled.

    Telemetry: windows and shadows. Exposures: exposures, measurements, sketches and pairs.
    Outcomes: outcomes and refusals.
    """

    instance: str
    boot: str
    sequence: int
    windows: tuple[TelemetryWindow, ...] = ()
    shadows: tuple[ShadowWindow, ...] = ()
    exposures: tuple[Exposure, ...] = ()
    measurements: tuple[UnitMeasurement, ...] = ()
    sketches: tuple[UnitSketch, ...] = ()
    pairs: tuple[ShadowPair, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    refusals: tuple[OutcomeRefusals, ...] = ()
    schema: int = SCHEMA


class BreakerTrip(msgspec.Struct, frozen=True, kw_only=True):
    """A version's breaker opened under `generation`, `count` times since this boot."""

    model: str
    version: str
    generation: int
    count: int
    last_at_ms: int
    reason: str


class InstanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """The generation that an instance serves, and the one that it refused, if any.

    `dropped` counts messages that the bounded spool dropped since this boot, by stream. `pinned`
    are the models that an operator pinned to stable on this instance, `*` for all of them: their
    splits have no effect there.
    """

    instance: str
    boot: str
    at_ms: int
    applied_generation: int
    refused_generation: int | None = None
    refusal: str | None = None
    trips: tuple[BreakerTrip, ...] = ()
    dropped: dict[str, int] = {}
    stopping: bool = False
    pinned: tuple[str, ...] = ()
    schema: int = SCHEMA


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_report_encoder = msgspec.json.Encoder()
_report_decoder = msgspec.json.Decoder(InstanceReport)


def encode_batch(batch: Batch) -> bytes:
    """Return the MessagePack form of `batch`."""
    return _encoder.encode(batch)


def decode_batch(data: bytes) -> Batch:
    """Parse a stream entry. Raises MessageError."""
    try:
        batch = _batch_decoder.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(f"not a batch of schema {SCHEMA}: {error}") from error
    if batch.schema != SCHEMA:
        raise MessageError(f"unknown batch schema {batch.schema}; expected {SCHEMA}")
    return batch


def encode_report(report: InstanceReport) -> bytes:
    return _report_encoder.encode(report)


def decode_report(data: bytes) -> InstanceReport:
    """Parse a report. Raises MessageError."""
    try:
        report = _report_decoder.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(f"not an instance report of schema {SCHEMA}: {error}") from error
    if report.schema != SCHEMA:
        raise MessageError(f"unknown report schema {report.schema}; expected {SCHEMA}")
    return report
