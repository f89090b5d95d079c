"""Check drafts without the database. Each error names the field and the problem."""

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
# At most half of the units may be held out.
HOLDOUT_MAX_BP = 5_000
# Names that telemetry uses for traffic outside experiments.
RESERVED_NAMES = {STABLE, CANARY, BASELINE, EXPLICIT, HOLDOUT}
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
# Their values are secrets: they must not appear in routing tables or exposures.
SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"}
ROLES = [role for role, _ in MetricUse.ROLES]


@dataclass(frozen=True)
class VariantSpec:
    """A requested variant; `weight_bp` is its share of the included units."""

    name: str
    version_number: int | None
    weight_bp: int
    is_control: bool = False


@dataclass(frozen=True)
class MetricChoice:
    """A requested metric: exactly one is primary, a guardrail has a margin.

    The margin is `margin`, in the metric's unit, or `margin_relative` (0.02: 2 %) of `baseline`,
    the metric's current value. It is stored in the metric's unit.
    """

    metric: Metric
    role: str = MetricUse.PRIMARY
    margin: float | None = None
    mann_whitney: bool = False
    margin_relative: float | None = None
    baseline: float | None = None


def check_settings(experiment: Experiment) -> None:
    """Raise Invalid unless every setting is in range and fits the others."""
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
            raise Invalid(f"{name} is {value}; it must be {least} to {most} {unit}")
    if len(experiment.tenants) > TENANTS_MAX:
        raise Invalid(
            f"{len(experiment.tenants)} names; the limit is {TENANTS_MAX}", field="tenants"
        )
    _check_dimensions(experiment.dimensions, experiment.stratify_by)


def _check_dimensions(dimensions: Sequence[str], stratify_by: str) -> None:
    if len(dimensions) > DIMENSIONS_MAX:
        raise Invalid(f"{len(dimensions)} names; the limit is {DIMENSIONS_MAX}", field="dimensions")
    duplicate = _find_duplicate(dimensions)
    if duplicate:
        raise Invalid(f"{duplicate} appears twice", field="dimensions")
    for name in dimensions:
        if name != TENANT:
            _check_header("dimensions", name)
    if stratify_by and stratify_by not in dimensions:
        known = ", ".join(dimensions) or "none"
        raise Invalid(
            f"unknown dimension {stratify_by!r}; expected one of {known}", field="stratify_by"
        )


def read_headers(headers: Any) -> dict[str, list[str]]:
    """Return {lower-case header: its values}. Raises Invalid for an impossible name or value."""
    if not isinstance(headers, Mapping):
        raise Invalid("expected an object of {header: [values]}", field="headers")
    if len(headers) > HEADERS_MAX:
        raise Invalid(f"{len(headers)} names; the limit is {HEADERS_MAX}", field="headers")
    result: dict[str, list[str]] = {}
    for header, values in headers.items():
        name = str(header).lower()
        _check_header("headers", name)
        if name in result:
            raise Invalid(f"{name} appears twice", field="headers")
        result[name] = _values(name, values)
    return result


def _values(name: str, values: Any) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise Invalid(f"{name} needs a list of at least one value", field="headers")
    if len(values) > HEADER_VALUES_MAX:
        raise Invalid(
            f"{name} has {len(values)} values; the limit is {HEADER_VALUES_MAX}", field="headers"
        )
    for value in values:
        is_valid = isinstance(value, str) and 0 < len(value) <= TEXT_MAX and value.isprintable()
        if not is_valid or value != value.strip():
            raise Invalid(
                f"{value!r} is not a valid value of {name}: expected 1 to {TEXT_MAX} "
                "printable characters without spaces around them",
                field="headers",
            )
    return list(dict.fromkeys(values))


def _check_header(field: str, name: str) -> None:
    if HEADER_NAME.fullmatch(name) is None:
        raise Invalid(f"{name!r} is not a valid header name", field=field)
    if name in SECRET_HEADERS:
        raise Invalid(f"the values of {name} are secrets; use another header", field=field)


def check_specs(specs: Sequence[VariantSpec]) -> None:
    """Raise Invalid unless the variants are a valid set."""
    if not VARIANTS_MIN <= len(specs) <= VARIANTS_MAX:
        raise Invalid(
            f"an experiment needs {VARIANTS_MIN} to {VARIANTS_MAX} variants, not {len(specs)}"
        )
    for spec in specs:
        _check_variant_name(spec.name)
        if spec.version_number is None:
            raise Invalid("version is missing", field=f"variant {spec.name}")
    duplicate = _find_duplicate([spec.name for spec in specs])
    if duplicate:
        raise Invalid(f"two variants are named {duplicate}")
    controls = [spec for spec in specs if spec.is_control]
    if len(controls) != 1:
        raise Invalid(f"exactly one variant must be the control, not {len(controls)}")
    check_weights({spec.name: spec.weight_bp for spec in specs}, controls[0].name)


def check_weights(weights_bp: Mapping[str, int], control: str) -> None:
    """Raise Invalid unless weights are 0 to 10,000, control's is above 0, and they sum to 10,000.

    A treatment may have 0: it gets no new units and is compared with the units that it has.
    """
    for name, weight_bp in weights_bp.items():
        if not 0 <= weight_bp <= BUCKETS:
            raise Invalid(
                f"weight_bp is {weight_bp}; it must be 0 to {BUCKETS}", field=f"variant {name}"
            )
    if weights_bp[control] == 0:
        raise Invalid(f"control variant {control} needs a weight above 0")
    total_bp = sum(weights_bp.values())
    if total_bp != BUCKETS:
        raise Invalid(f"weights sum to {total_bp} basis points; they must sum to {BUCKETS}")


def _check_variant_name(name: str) -> None:
    try:
        valid_name(name)
    except ValidationError as error:
        raise Invalid(f"{error.messages[0]}", field=f"variant {name!r}") from None
    if name in RESERVED_NAMES:
        raise Invalid(
            "this name is reserved for traffic outside experiments", field=f"variant {name}"
        )


def check_choices(choices: Sequence[MetricChoice]) -> None:
    """Raise Invalid unless the metrics are a valid set."""
    if not 1 <= len(choices) <= METRICS_MAX:
        raise Invalid(f"an experiment needs 1 to {METRICS_MAX} metrics, not {len(choices)}")
    primaries = sum(choice.role == MetricUse.PRIMARY for choice in choices)
    for choice in choices:
        if choice.role not in ROLES:
            known = ", ".join(ROLES)
            raise Invalid(
                f"unknown role {choice.role!r}; expected one of {known}",
                field=f"metric {choice.metric}",
            )
    if primaries != 1:
        raise Invalid(f"exactly one metric must be primary, not {primaries}")
    duplicate = _find_duplicate([choice.metric.name for choice in choices])
    if duplicate:
        raise Invalid(f"metric {duplicate} appears twice")
    for choice in choices:
        margin_of(choice)
        if choice.mann_whitney and choice.metric.kind != Metric.Kind.MEAN:
            raise Invalid(
                f"the Mann-Whitney test needs a mean; this is a {choice.metric.kind}",
                field=f"metric {choice.metric}",
            )


def margin_of(choice: MetricChoice) -> float | None:
    """Return the margin in the metric's unit. Raises Invalid if it is missing or not allowed."""
    where = f"metric {choice.metric}"
    margins = [choice.margin, choice.margin_relative, choice.baseline]
    if choice.role != MetricUse.GUARDRAIL:
        if any(value is not None for value in margins):
            raise Invalid(
                f"only a guardrail has a margin; this is a {choice.role} metric", field=where
            )
        return None
    if (choice.margin is None) == (choice.margin_relative is None):
        raise Invalid(
            "a guardrail needs either 'margin' or 'margin_relative' (with 'baseline')", field=where
        )
    margin = choice.margin
    if choice.margin_relative is not None:
        if choice.baseline is None:
            raise Invalid("margin_relative needs baseline, the metric's current value", field=where)
        margin = choice.margin_relative * abs(choice.baseline)
    if margin is None or not math.isfinite(margin) or margin <= 0:
        raise Invalid(f"margin is {margin}; it must be a number above 0", field=where)
    if choice.metric.kind == Metric.Kind.PROPORTION and margin >= 1:
        raise Invalid(
            f"margin is {margin:g}; for a proportion it must be below 1 (0.01: 1 %)", field=where
        )
    return margin


def _find_duplicate(names: Sequence[str]) -> str:
    """Return a name that appears more than once, or an empty string."""
    return next((name for name, count in Counter(names).items() if count > 1), "")
