"""What a draft may say: the checks that need no database. Each refusal says what and where."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError

from apps.experiments.lifecycle import TENANT
from apps.experiments.models import Experiment, Metric, MetricUse
from apps.lib.errors import Invalid
from apps.models.models import valid_name
from contract.bucketing import BUCKETS
from contract.routing import BASELINE, CANARY, EXPLICIT, HOLDOUT, STABLE

VARIANTS_MIN = 2
VARIANTS_MAX = 20
METRICS_MAX = 20
PLANNED_UNITS_MAX = 1_000_000_000
ALPHA_PPM_MAX = 500_000
DIMENSIONS_MAX = 5
HEADERS_MAX = 10
HEADER_VALUES_MAX = 100
TENANTS_MAX = 1_000
TEXT_MAX = 200
COVARIATE_MAX_S = 90 * 86_400
# Somebody has to take part.
HOLDOUT_MAX_BP = 5_000
# Names that telemetry uses for traffic that belongs to no experiment.
RESERVED_NAMES = {STABLE, CANARY, BASELINE, EXPLICIT, HOLDOUT}
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
# Their values are secrets: no routing table and no exposure may carry them.
SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"}
ROLES = [role for role, _ in MetricUse.ROLES]


@dataclass(frozen=True)
class VariantSpec:
    """A variant as it is asked for: `weight_bp` is its share of the included units."""

    name: str
    version_number: int | None
    weight_bp: int
    is_control: bool = False


@dataclass(frozen=True)
class MetricChoice:
    """A metric as it is asked for: exactly one is primary, a guardrail has a margin.

    The margin is `margin`, in the metric's unit, or `margin_relative` (0.02: 2 %) of `baseline`,
    what the metric is today; it is stored as the former.
    """

    metric: Metric
    role: str = MetricUse.PRIMARY
    margin: float | None = None
    mann_whitney: bool = False
    margin_relative: float | None = None
    baseline: float | None = None


def check_settings(experiment: Experiment) -> None:
    """Raise Invalid unless every setting is in its range and fits the others."""
    bounds = {
        "coverage_bp": (1, BUCKETS, "basis points"),
        "planned_units": (1, PLANNED_UNITS_MAX, "units"),
        "alpha_ppm": (1, ALPHA_PPM_MAX, "millionths (0.0001 % to 50 %)"),
        "holdout_bp": (0, HOLDOUT_MAX_BP, "basis points"),
        "covariate_s": (0, COVARIATE_MAX_S, "seconds (90 days)"),
    }
    for name, (least, most, unit) in bounds.items():
        value = getattr(experiment, name)
        if not least <= value <= most:
            raise Invalid(f"{name} is {value}; it takes {least} to {most} {unit}")
    if len(experiment.tenants) > TENANTS_MAX:
        raise Invalid(f"tenants: {len(experiment.tenants)} are named; at most {TENANTS_MAX} can be")
    _check_dimensions(experiment.dimensions, experiment.stratify_by)


def _check_dimensions(dimensions: Sequence[str], stratify_by: str) -> None:
    if len(dimensions) > DIMENSIONS_MAX:
        raise Invalid(f"dimensions: {len(dimensions)} are named; at most {DIMENSIONS_MAX} can be")
    twice = _twice(dimensions)
    if twice:
        raise Invalid(f"dimensions: {twice} is named twice")
    for name in dimensions:
        if name != TENANT:
            _check_header("dimensions", name)
    if stratify_by and stratify_by not in dimensions:
        known = ", ".join(dimensions) or "none"
        raise Invalid(f"stratify_by: unknown dimension {stratify_by!r}; expected one of {known}")


def read_headers(headers: Any) -> dict[str, list[str]]:
    """Return {lower-case header: its values}. Raises Invalid for what no request can carry."""
    if not isinstance(headers, Mapping):
        raise Invalid("headers: it takes an object: the values that each header may have")
    if len(headers) > HEADERS_MAX:
        raise Invalid(f"headers: {len(headers)} are named; at most {HEADERS_MAX} can be")
    found: dict[str, list[str]] = {}
    for given, values in headers.items():
        name = str(given).lower()
        _check_header("headers", name)
        if name in found:
            raise Invalid(f"headers: {name} is named twice")
        found[name] = _values(name, values)
    return found


def _values(name: str, values: Any) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise Invalid(f"headers: {name} takes a list of at least one value")
    if len(values) > HEADER_VALUES_MAX:
        raise Invalid(f"headers: {name} has {len(values)} values, at most {HEADER_VALUES_MAX} work")
    for value in values:
        fits = isinstance(value, str) and 0 < len(value) <= TEXT_MAX and value.isprintable()
        if not fits or value != value.strip():
            raise Invalid(
                f"headers: {value!r} of {name} is no value of a header: 1 to {TEXT_MAX} printable "
                "characters without spaces around them"
            )
    return list(dict.fromkeys(values))


def _check_header(field: str, name: str) -> None:
    if HEADER_NAME.fullmatch(name) is None:
        raise Invalid(f"{field}: {name!r} is no name of a header")
    if name in SECRET_HEADERS:
        raise Invalid(f"{field}: the values of {name} are secrets; name another header")


def check_specs(specs: Sequence[VariantSpec]) -> None:
    """Raise Invalid unless the variants make an experiment."""
    if not VARIANTS_MIN <= len(specs) <= VARIANTS_MAX:
        raise Invalid(
            f"an experiment has {VARIANTS_MIN} to {VARIANTS_MAX} variants, not {len(specs)}"
        )
    for spec in specs:
        _check_variant_name(spec.name)
        if spec.version_number is None:
            raise Invalid(f"variant {spec.name}: it has no version; name one of the model's")
    twice = _twice([spec.name for spec in specs])
    if twice:
        raise Invalid(f"two variants are named {twice}")
    controls = [spec for spec in specs if spec.is_control]
    if len(controls) != 1:
        raise Invalid(f"exactly one variant is the control, not {len(controls)}")
    check_weights({spec.name: spec.weight_bp for spec in specs}, controls[0].name)


def check_weights(weights_bp: Mapping[str, int], control: str) -> None:
    """Raise Invalid unless each weight is a share, control's is one of some, and they sum to all.

    A treatment may have 0: it gets no units, and is compared with those that it has.
    """
    for name, weight_bp in weights_bp.items():
        if not 0 <= weight_bp <= BUCKETS:
            raise Invalid(f"variant {name}: weight_bp is {weight_bp}, not 0 to {BUCKETS}")
    if weights_bp[control] == 0:
        raise Invalid(f"control variant {control} needs a weight above 0")
    total_bp = sum(weights_bp.values())
    if total_bp != BUCKETS:
        raise Invalid(f"weights sum to {total_bp} basis points; they must sum to {BUCKETS}")


def _check_variant_name(name: str) -> None:
    try:
        valid_name(name)
    except ValidationError as error:
        raise Invalid(f"variant {name!r}: {error.messages[0]}") from None
    if name in RESERVED_NAMES:
        raise Invalid(f"variant {name}: this name is reserved for traffic outside experiments")


def check_choices(choices: Sequence[MetricChoice]) -> None:
    """Raise Invalid unless the metrics make an experiment."""
    if not 1 <= len(choices) <= METRICS_MAX:
        raise Invalid(f"an experiment has 1 to {METRICS_MAX} metrics, not {len(choices)}")
    primaries = sum(choice.role == MetricUse.PRIMARY for choice in choices)
    for choice in choices:
        if choice.role not in ROLES:
            known = ", ".join(ROLES)
            raise Invalid(
                f"metric {choice.metric}: unknown role {choice.role!r}; expected one of {known}"
            )
    if primaries != 1:
        raise Invalid(f"exactly one metric is primary, not {primaries}")
    twice = _twice([choice.metric.name for choice in choices])
    if twice:
        raise Invalid(f"metric {twice} is named twice")
    for choice in choices:
        margin_of(choice)
        if choice.mann_whitney and choice.metric.kind != Metric.Kind.MEAN:
            raise Invalid(
                f"metric {choice.metric}: Mann-Whitney ranks the units' values of a mean; "
                f"this is a {choice.metric.kind}"
            )


def margin_of(choice: MetricChoice) -> float | None:
    """Return the margin in the metric's unit. Raises Invalid where there must be none, or one."""
    where = f"metric {choice.metric}"
    given = [choice.margin, choice.margin_relative, choice.baseline]
    if choice.role != MetricUse.GUARDRAIL:
        if any(value is not None for value in given):
            raise Invalid(f"{where}: only a guardrail has a margin; this is a {choice.role} metric")
        return None
    if (choice.margin is None) == (choice.margin_relative is None):
        raise Invalid(f"{where}: a guardrail has margin, or margin_relative with baseline")
    margin = choice.margin
    if choice.margin_relative is not None:
        if choice.baseline is None:
            raise Invalid(f"{where}: margin_relative needs baseline, what the metric is today")
        margin = choice.margin_relative * abs(choice.baseline)
    if margin is None or not math.isfinite(margin) or margin <= 0:
        raise Invalid(f"{where}: margin is {margin}; it takes a number above 0")
    if choice.metric.kind == Metric.Kind.PROPORTION and margin >= 1:
        raise Invalid(f"{where}: margin is {margin:g}; of a proportion it is below 1 (0.01: 1 %)")
    return margin


def _twice(names: Sequence[str]) -> str:
    """Return a name that stands there twice, or nothing."""
    return next((name for name, count in Counter(names).items() if count > 1), "")
