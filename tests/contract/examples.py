"""Examples of all messages between the planes; `golden/` holds their bytes.

The golden files are what an older or a newer side would send. A new field with a default changes
the golden files but not `golden/first/`, which must still be readable; any other change needs
another `contract.SCHEMA`. `python -m tests.contract.examples` rewrites the golden files.
"""

from __future__ import annotations

import json
from pathlib import Path

from contract import messages, routing
from contract.bucketing import bucket
from contract.messages import (
    Batch,
    BreakerTrip,
    ClusterCounts,
    Ends,
    Exposure,
    InstanceReport,
    Outcome,
    ShadowPair,
    ShadowWindow,
    TelemetryWindow,
)
from contract.refusals import NO_PROPORTION, UNKNOWN_METRIC, MetricRule, OutcomeRefusals
from contract.routing import (
    Batching,
    Breaker,
    Cache,
    CanarySplit,
    Cluster,
    ExperimentSplit,
    ModelRoute,
    RoutingTable,
    Shadow,
    Signature,
    Tenant,
    Tensor,
    UnitKey,
    VariantRoute,
    VersionRoute,
)

GOLDEN = Path(__file__).parent / "golden"
SALTS = ("", "rollout-7", "rollout-8", "erfahrung-ü")
UNITS = (
    "",
    "u1",
    "u2",
    "user@example.com",
    "0",
    "42",
    "Zoë",
    "Zoe\u0308",
    "山田太郎",
    "🚂",
    "a:b",
    "ß",
)


def _versions(name: str, *numbers: int) -> dict[str, VersionRoute]:
    return {
        str(number): VersionRoute(
            cluster="main", triton_model=f"{name}.{number}", triton_version=str(number)
        )
        for number in numbers
    }


DIGITS = ModelRoute(
    signature=Signature(
        inputs=(Tensor(name="pixels", datatype="FP32", shape=(-1, 64)),),
        outputs=(
            Tensor(name="label", datatype="INT64", shape=(-1, 1)),
            Tensor(name="probabilities", datatype="FP32", shape=(-1, 10)),
        ),
    ),
    stable="1",
    versions=_versions("digits", 1, 2),
    split=CanarySplit(id="rollout-7", salt="s7", version="2", weight_bp=500, interval_s=10),
)
WORDS = ModelRoute(
    signature=Signature(
        inputs=(Tensor(name="text", datatype="BYTES", shape=(-1, -1)),),
        outputs=(Tensor(name="score", datatype="FP64", shape=(-1, 1)),),
    ),
    stable="3",
    versions=_versions("words", 3, 4),
    split=ExperimentSplit(
        id="experiment-2",
        inclusion_salt="in",
        variant_salt="va",
        coverage_bp=6_000,
        variants=(
            VariantRoute(name="control", version="3", weight_bp=5_000),
            VariantRoute(name="größer", version="4", weight_bp=5_000),
        ),
    ),
    batching=Batching(max_batch_size=8, max_queue_delay_us=1_000, max_queue_size=64),
    breaker=Breaker(window=50, failures=20, open_ms=2_000),
    unit_key=UnitKey(header="x-customer", parameter="customer"),
    timeout_ms=250,
    cache=Cache(ttl_s=300, shared=True),
    shadow=Shadow(id="shadow-1", salt="sh", version="4", share_bp=1_000, pairs=True),
)
LETTERS = ModelRoute(
    signature=DIGITS.signature,
    stable="1",
    versions=_versions("letters", 1, 2),
    split=CanarySplit(
        id="rollout-8", salt="s8", version="2", weight_bp=500, baseline_bp=500, exposures=True
    ),
)
FACES = ModelRoute(
    signature=DIGITS.signature,
    stable="1",
    versions=_versions("faces", 1, 2),
    split=ExperimentSplit(
        id="experiment-3",
        inclusion_salt="in-3",
        variant_salt="va-3",
        coverage_bp=9_000,
        variants=(
            VariantRoute(name="weak", version="1", weight_bp=10_000),
            VariantRoute(name="strong", version="2", weight_bp=0),
        ),
        tenants=("shop",),
        headers={"x-country": ("ch", "côte")},
        holdout_salt="faces",
        holdout_bp=100,
        dimensions=("tenant", "x-country"),
        measured=True,
    ),
)
RETIRED = ModelRoute(
    signature=Signature(
        inputs=(Tensor(name="x", datatype="BOOL", shape=(2, 3)),),
        outputs=(Tensor(name="y", datatype="UINT8", shape=(1,)),),
    ),
    stable=None,
    versions=_versions("retired", 9),
    batched=False,
)
TABLE = RoutingTable(
    generation=42,
    models={
        "digits": DIGITS,
        "words": WORDS,
        "letters": LETTERS,
        "faces": FACES,
        "retired": RETIRED,
    },
    clusters={
        "main": Cluster(endpoints=("127.0.0.1:8000", "http://127.0.0.1:8010"), hedge_after_ms=40)
    },
    tenants={
        "shop": Tenant(
            keys=("2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",),
            requests_per_s=500.0,
            burst=1_000,
            concurrency_max=64,
            priority="high",
            limited_keys={
                "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9": ("digits",)
            },
        )
    },
    key_required=True,
    id_secret="of-the-golden-table",
    metrics={
        "correct": MetricRule(is_binary=True),
        "latency": MetricRule(refusal="the data plane measures latency itself"),
        "umsatz_zürich": MetricRule(),
    },
)
_SENDER = {"instance": "dp-1", "boot": "6b05f2edff6d9106"}
WINDOWS = Batch(
    **_SENDER,  # type: ignore[arg-type]
    sequence=7,
    windows=(
        TelemetryWindow(
            model="digits",
            version="2",
            variant="canary",
            generation=42,
            split="rollout-7",
            started_at_ms=1_795_552_013_000,
            ended_at_ms=1_795_552_014_000,
            interval_started_at_ms=1_795_552_010_000,
            requests=120,
            errors=3,
            fallbacks=2,
            units=90,
            unit_errors=2,
            anonymous=5,
            anonymous_errors=1,
            cache_hits=11,
            latency={80: 100, 96: 17},
            assigned=104,
            unanswered=6,
            assigned_requests=140,
            ends=Ends(
                answered=117,
                failed=1,
                fell_back=2,
                expired=3,
                shed=2,
                abandoned=1,
                refused=1,
                cached=11,
                bypassed=1,
            ),
            clusters={
                0: ClusterCounts(3, 4, 1, 4, 1, {80: 3}),
                31: ClusterCounts(units=2, assigned=2),
            },
        ),
        TelemetryWindow(
            model="letters",
            version="1",
            variant="baseline",
            generation=42,
            split="rollout-8",
            started_at_ms=1_795_552_013_000,
            ended_at_ms=1_795_552_014_000,
            interval_started_at_ms=1_795_552_010_000,
            requests=2,
            units=2,
            latency={82: 2},
            assigned=3,
        ),
    ),
    shadows=(
        ShadowWindow(
            model="words",
            version="4",
            stable="3",
            generation=42,
            shadow="shadow-1",
            started_at_ms=1_795_552_013_000,
            ended_at_ms=1_795_552_014_000,
            compared=40,
            rows=44,
            flips=2,
            beyond_tolerance=3,
            largest_difference=0.25,
            rank_correlation_sum=41.5,
            ranked=44,
            errors=1,
            dropped=7,
            latency={90: 40},
        ),
    ),
)
EXPOSURES = Batch(
    **_SENDER,  # type: ignore[arg-type]
    sequence=8,
    exposures=(
        Exposure(
            experiment="experiment-2",
            unit="山田太郎",
            variant="größer",
            version="4",
            at_ms=1_795_552_013_123,
        ),
        Exposure(
            experiment="rollout-8",
            unit="u1",
            variant="baseline",
            version="1",
            at_ms=1_795_552_013_456,
        ),
    ),
    pairs=(
        ShadowPair(
            shadow="shadow-1",
            request="7f3a9c01-18eb150b04698940",
            at_ms=1_795_552_013_500,
            unit="u1",
            stable_class=7.0,
            shadow_class=1.0,
        ),
        ShadowPair(
            shadow="shadow-1",
            request="7f3a9c01-18eb150b04698941",
            at_ms=1_795_552_013_501,
            stable_score=0.25,
            shadow_score=0.75,
        ),
    ),
)
OUTCOMES = Batch(
    **_SENDER,  # type: ignore[arg-type]
    sequence=9,
    outcomes=(
        Outcome(
            event_id="e-1",
            unit_id="u1",
            metric="correct",
            value=1.0,
            occurred_at_ms=1_795_552_013_500,
        ),
        Outcome(
            event_id="e-2",
            unit_id="",
            metric="correct",
            value=0.0,
            occurred_at_ms=1_795_552_013_600,
            request_id="digits:2:1f0c2a9b-18eb150b0a5d8800",
        ),
        Outcome(
            event_id="e-3",
            unit_id="u1",
            metric="correct",
            value=1.0,
            occurred_at_ms=1_795_552_013_700,
            tenant="shop",
            models=("digits",),
        ),
    ),
    refusals=(
        OutcomeRefusals(metric="corect", reason=UNKNOWN_METRIC, count=3, tenant="shop"),
        OutcomeRefusals(metric="correct", reason=NO_PROPORTION, count=1),
    ),
)
REPORT = InstanceReport(
    **_SENDER,  # type: ignore[arg-type]
    at_ms=1_795_552_014_000,
    applied_generation=41,
    refused_generation=42,
    refusal="digits.2:2 is not ready on 127.0.0.1:8000: Model version not ready",
    trips=(
        BreakerTrip(
            model="digits",
            version="2",
            generation=41,
            count=2,
            last_at_ms=1_795_552_012_000,
            reason="no answer before the deadline",
        ),
    ),
    dropped={messages.STREAM_TELEMETRY: 4},
    pinned=("words",),
)
BATCHES = {"windows": WINDOWS, "exposures": EXPOSURES, "outcomes": OUTCOMES}


def golden_files() -> dict[str, bytes]:
    """Return what each golden file must hold."""
    vectors = [[salt, unit, bucket(salt, unit)] for salt in SALTS for unit in UNITS]
    files = {
        "routing_table.json": routing.encode(TABLE),
        "report.json": messages.encode_report(REPORT),
        "bucketing.json": json.dumps(vectors, ensure_ascii=False, indent=0).encode(),
    }
    for name, batch in BATCHES.items():
        files[f"{name}.msgpack"] = messages.encode_batch(batch)
    return files


if __name__ == "__main__":
    for name, data in golden_files().items():
        (GOLDEN / name).write_bytes(data)
