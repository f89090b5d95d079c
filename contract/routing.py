"""The routing table: the only document that the data plane serves from.

The control plane compiles it in the transaction that changes what serves, and data planes pull it.
The same state gives the same bytes: `encode` sorts keys, so a digest identifies a table. Traffic
shares are integers in basis points of 10,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from contract import SCHEMA
from contract.bucketing import BUCKETS, bucket
from contract.names import model_name_fault
from contract.refusals import MetricRule

# Characters of an invalid name that an error shows.
NAME_SHOWN_MAX = 120
CHANNEL = "interlock:routing-table"

Name = str
Priority = Literal["high", "normal", "low"]
# The variants outside experiments.
STABLE = "stable"
CANARY = "canary"
BASELINE = "baseline"
EXPLICIT = "explicit"
HOLDOUT = "holdout"


class TableError(ValueError):
    """A routing table that must not be applied; the message says what is wrong and where."""


class Document(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the parts of a table: immutable; unknown fields of later minor versions are ignored.

    Documents cannot form cycles, so the garbage collector does not track the hundreds of thousands
    of them.
    """


class Tensor(Document, frozen=True):
    """One input or output; `shape` is −1 in free dimensions, and the batch dimension is first."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(Document, frozen=True):
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class VersionRoute(Document, frozen=True):
    """Where a version is served: a cluster, and its name and number in Triton.

    `warmup` is a JSON list of requests, each a list of inputs in the form of the protocol, that the
    version must answer before it gets traffic; empty stands for one request of zeros.
    `created_at_ms` is when the version was registered, 0 if that is unknown.
    """

    cluster: Name
    triton_model: str
    triton_version: str
    warmup: str = ""
    created_at_ms: int = 0


class CanarySplit(Document, tag="canary", tag_field="kind", frozen=True):
    """A rollout's split: buckets `[0, weight_bp)` go to `version`, the others to stable.

    The last `baseline_bp` buckets are the baseline: stable too, but counted, queued and cached
    apart, so that the canary is compared with a slice of its own size. The canary grows from the
    other end, so that no unit is ever in both.
    """

    id: str
    salt: str
    version: str
    weight_bp: int
    # Units are counted once per interval of this length: one check interval of the rollout.
    interval_s: int = 10
    baseline_bp: int = 0
    # Whether the first assignment of each unit to each side is reported, as in an experiment.
    exposures: bool = False

    def variant_of(self, unit: str) -> str:
        return self.variant_at(bucket(self.salt, unit))

    def variant_at(self, point: int) -> str:
        if point < self.weight_bp:
            return CANARY
        return BASELINE if point >= BUCKETS - self.baseline_bp else STABLE


class VariantRoute(Document, frozen=True):
    name: str
    version: str
    weight_bp: int


class ExperimentSplit(Document, tag="experiment", tag_field="kind", frozen=True):
    """An experiment's split: eligible requests, hold-out, inclusion, and variants.

    A request is eligible if its tenant is one of `tenants` (empty: any tenant, and anonymous
    clients) and it carries each of `headers` (lower-case names) with one of the values. Of the
    eligible units, those in buckets `[0, holdout_bp)` under `holdout_salt`, which the experiments
    of a model share, are held out: stable answers them as variant `holdout`. `inclusion_salt`
    decides inclusion, and `variant_salt` the variant.
    """

    id: str
    inclusion_salt: str
    variant_salt: str
    coverage_bp: int
    variants: tuple[VariantRoute, ...]
    tenants: tuple[Name, ...] = ()
    headers: dict[str, tuple[str, ...]] = {}
    holdout_salt: str = ""
    holdout_bp: int = 0
    # Headers whose values exposures carry, to break down results by them.
    dimensions: tuple[str, ...] = ()
    # Whether the data plane reports its own measurements for each unit.
    measured: bool = False

    def is_held_out(self, unit: str) -> bool:
        """Return whether `unit` gets stable in every experiment of the model."""
        return self.holdout_bp > 0 and bucket(self.holdout_salt, unit) < self.holdout_bp

    def variant_of(self, unit: str) -> VariantRoute | None:
        """Return the variant of `unit`, or None for a unit that is not included."""
        if bucket(self.inclusion_salt, unit) >= self.coverage_bp:
            return None
        point = bucket(self.variant_salt, unit)
        for variant in self.variants:
            point -= variant.weight_bp
            if point < 0:
                return variant
        return None


class Batching(Document, frozen=True):
    max_batch_size: int = 32
    max_queue_delay_us: int = 5_000
    # Rows that may wait for a version; further requests get 503 at once.
    max_queue_size: int = 1_024


class Breaker(Document, frozen=True):
    """Opens if `failures` of the last `window` answers failed; tries again after `open_ms`."""

    window: int = 20
    failures: int = 10
    open_ms: int = 5_000


class Cache(Document, frozen=True):
    """Answers of a model may be reused for `ttl_s`; with `shared`, Redis keeps them as well."""

    ttl_s: int = 60
    shared: bool = False


class Shadow(Document, frozen=True):
    """Requests to stable are copied to `version`, for units in buckets `[0, share_bp)`.

    Outputs agree if labels are equal and numbers differ by at most `absolute_tolerance +
    relative_tolerance × |stable's number|`. With `pairs` some pairs of answers are reported, to
    compare both with the outcome later.
    """

    id: str
    salt: str
    version: str
    share_bp: int
    absolute_tolerance: float = 1e-5
    relative_tolerance: float = 1e-3
    pairs: bool = False


class UnitKey(Document, frozen=True):
    """Where a request carries its unit: a header, or a request parameter."""

    header: str = "x-unit-id"
    parameter: str = "unit_id"


class ModelRoute(Document, frozen=True):
    """How one model serves. `batched` is False for a model without a batch dimension."""

    signature: Signature
    stable: str | None
    versions: dict[str, VersionRoute]
    split: CanarySplit | ExperimentSplit | None = None
    batched: bool = True
    batching: Batching = Batching()
    breaker: Breaker = Breaker()
    unit_key: UnitKey = UnitKey()
    timeout_ms: int = 1_000
    cache: Cache | None = None
    shadow: Shadow | None = None


class Cluster(Document, frozen=True):
    """Endpoints that hold the same versions.

    A call without an answer after `hedge_after_ms` is also sent to a second endpoint; None disables
    that.
    """

    endpoints: tuple[str, ...]
    hedge_after_ms: int | None = None


class Tenant(Document, frozen=True):
    """A client with its limits; `keys` are SHA-256 digests of API keys, in lower-case hex.

    A limit of None is no limit. `burst` is the number of requests that may come at once after a
    pause; by default the number per second. `limited_keys` are keys that allow some models only;
    they are not among `keys`, so a reader that does not know limited keys refuses them.
    """

    keys: tuple[str, ...]
    requests_per_s: float | None = None
    burst: int | None = None
    concurrency_max: int | None = None
    priority: Priority = "normal"
    limited_keys: dict[str, tuple[Name, ...]] = {}


class RoutingTable(Document, frozen=True):
    """Everything that data planes serve from.

    Outcomes are accepted for `metrics` only; None means that the metrics are not known.
    """

    generation: int
    models: dict[Name, ModelRoute]
    clusters: dict[Name, Cluster]
    tenants: dict[Name, Tenant] = {}
    # If false, requests without a key are served as anonymous.
    key_required: bool = False
    # The secret for the seals of answer ids (`contract.request_ids`); empty: no seals.
    id_secret: str = ""
    metrics: dict[Name, MetricRule] | None = None
    schema: Literal[1] = SCHEMA  # type: ignore[assignment]


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(RoutingTable)
_models_decoder = msgspec.json.Decoder(dict[Name, ModelRoute])


def encode(table: RoutingTable) -> bytes:
    """Return the canonical JSON of `table`: the same table always gives the same bytes.

    Each model is on a line of its own, and there are no other line breaks: a reader can process a
    large table in pieces, and recognise unchanged models by their bytes (`split_table`).
    """
    fields = []
    for name in table.__struct_fields__:
        value = getattr(table, name)
        text = _model_lines(value) if name == "models" else _encoder.encode(value)
        fields.append(b'"%b":%b' % (name.encode(), text))
    return b"{%b}" % b",".join(fields)


def with_generation(data: bytes, generation: int) -> bytes:
    """Return the bytes of a table of generation 0 with `generation` instead."""
    return data.replace(b'"generation":0,', b'"generation":%d,' % generation, 1)


def _model_lines(models: dict[Name, ModelRoute]) -> bytes:
    entries = [b"%b:%b" % (_encoder.encode(n), _encoder.encode(models[n])) for n in sorted(models)]
    return b"{\n%b\n}" % b",\n".join(entries)


def decode(data: bytes) -> RoutingTable:
    """Parse and check a table.

    Raises:
        TableError: it is not JSON, has an unknown schema, or contradicts itself.
    """
    table = decode_unchecked(data)
    check(table)
    return table


def decode_unchecked(data: bytes) -> RoutingTable:
    """Parse a table. Raises TableError if it is not JSON or has an unknown schema."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise TableError(f"not a routing table of schema {SCHEMA}: {error}") from error


def split_table(data: bytes) -> tuple[bytes, Iterator[bytes]] | None:
    """Split a table, without parsing it, into the table without models and one line per model.

    Returns None if the models have no lines of their own. JSON strings contain no raw line breaks,
    so a line break is never inside a string.
    """
    first, last = data.find(b"\n"), data.rfind(b"\n")
    if (
        first == last
        or not data.endswith(b'"models":{', 0, first)
        or data[last + 1 : last + 2] != b"}"
    ):
        return None
    return data[:first] + data[last + 1 :], _lines(data, first + 1, last)


def _lines(data: bytes, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        stop = data.find(b"\n", start)
        if line := data[start:stop].rstrip(b","):
            yield line
        start = stop + 1


def decode_models(line: bytes) -> dict[Name, ModelRoute]:
    """Parse one line of `split_table`. Raises TableError."""
    try:
        return _models_decoder.decode(b"{%b}" % line)
    except msgspec.DecodeError as error:
        raise TableError(f"not a model of schema {SCHEMA}: {error}") from error


def check(table: RoutingTable) -> None:
    """Raise TableError unless every reference in `table` resolves and every share is valid."""
    for name, model in table.models.items():
        check_model(name, model, table.clusters)
    check_frame(table)


def check_model(name: Name, model: ModelRoute, clusters: dict[Name, Cluster]) -> None:
    """Raise TableError if `model` contradicts itself or names an unknown cluster."""
    fault = model_name_fault(name)
    if fault is not None:
        raise TableError(f"{name[:NAME_SHOWN_MAX]!r}: {fault}")
    for number, version in model.versions.items():
        if version.cluster not in clusters:
            raise TableError(f"{name}:{number}: unknown cluster {version.cluster!r}")
    if model.stable is not None and model.stable not in model.versions:
        raise TableError(f"{name}: stable version {model.stable!r} is not among its versions")
    if model.split is not None:
        _check_split(name, model, model.split)
    if model.shadow is not None:
        _check_shadow(name, model, model.shadow)


def check_frame(table: RoutingTable) -> None:
    """Raise TableError if the clusters or tenants are not valid."""
    for cluster_name, cluster in table.clusters.items():
        if not cluster.endpoints:
            raise TableError(f"cluster {cluster_name!r} has no endpoint")
    _check_keys(table.tenants)


def _check_split(name: str, model: ModelRoute, split: CanarySplit | ExperimentSplit) -> None:
    if isinstance(split, CanarySplit):
        named = [split.version]
        shares = [split.weight_bp, split.baseline_bp]
        if sum(shares) > BUCKETS:
            raise TableError(f"{name}: canary and baseline together are more than {BUCKETS}")
    else:
        named = [variant.version for variant in split.variants]
        shares = [split.coverage_bp, split.holdout_bp]
        shares += [variant.weight_bp for variant in split.variants]
        if sum(variant.weight_bp for variant in split.variants) != BUCKETS:
            raise TableError(f"{name}: variant weights do not sum to {BUCKETS}")
    for version in named:
        if version not in model.versions:
            raise TableError(f"{name}: split names version {version!r}, which is not served")
    if any(not 0 <= share <= BUCKETS for share in shares):
        raise TableError(f"{name}: a share of the split is outside 0 to {BUCKETS}")
    if model.stable is None:
        raise TableError(f"{name}: a split needs a stable version")


def _check_shadow(name: str, model: ModelRoute, shadow: Shadow) -> None:
    if shadow.version not in model.versions:
        raise TableError(f"{name}: shadow version {shadow.version!r} is not served")
    if not 0 <= shadow.share_bp <= BUCKETS:
        raise TableError(f"{name}: the shadow's share is outside 0 to {BUCKETS}")


def _check_keys(tenants: dict[Name, Tenant]) -> None:
    owners: dict[str, Name] = {}
    for name, tenant in tenants.items():
        for key in (*tenant.keys, *tenant.limited_keys):
            owner = owners.setdefault(key, name)
            if owner != name:
                raise TableError(f"tenants {owner!r} and {name!r} share a key")
