"""Plan form in percent, minutes and hours instead of basis points and seconds.

Every plan passes through the form and back without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms

from apps.models.models import Role, valid_name
from apps.rollouts.check_json_lines import read_lines, to_lines
from apps.rollouts.check_kinds import DEFAULT_CHECKS, KINDS, CheckDocument
from apps.rollouts.models import Control, Gate, Plan
from apps.rollouts.plans import PlanDocument, StepDocument, document_of
from contract.names import NAME_RULE

if TYPE_CHECKING:
    StepForms = forms.BaseFormSet["StepForm"]
else:
    StepForms = forms.BaseFormSet

STEPS_MAX = 20
PERCENT_BP = 100
MINUTE_S = 60
HOUR_S = 3_600
LONGEST_BAKE_MIN = 30 * 24 * 60
# The maximum of a PostgreSQL integer column.
COUNT_MAX = 2**31 - 1
# Kinds of checks without required settings have a checkbox; others are JSON documents.
PLAIN_CHECKS = tuple(
    name
    for name, kind in KINDS.items()
    if not any(setting.is_required for setting in kind.settings.values()) and not kind.problem({})
)
EVIDENCE_MODES = (
    ("any_regression", "Any regression: proof of any harm, and an estimate beyond the tolerance"),
    ("beyond_margin", "Beyond the margin: proof of harm greater than the tolerance"),
)
CONTROLS = (
    (Control.ALL, "All traffic of stable"),
    (Control.EQUAL, "A slice of stable as large as the canary"),
)
GATES = ((Gate.AUTOMATIC, "none"), (Gate.PERSON, "a person"))


class PlanForm(forms.Form):
    """The settings of a plan, without its steps."""

    name = forms.CharField(
        max_length=100, validators=[valid_name], help_text=f"{NAME_RULE.capitalize()}."
    )
    description = forms.CharField(
        required=False, max_length=1_000, widget=forms.Textarea(attrs={"rows": 2})
    )
    is_default = forms.BooleanField(required=False, label="Default plan")
    time_scale = forms.DecimalField(
        label="Time scale",
        min_value=Decimal("0.001"),
        max_value=Decimal(10),
        decimal_places=3,
        initial=1,
        help_text="Factor for all bake times: with 0.01, 30 minutes become 18 seconds.",
    )
    interval_s = forms.IntegerField(
        label="Check interval, s",
        min_value=1,
        max_value=3_600,
        initial=10,
        help_text="Checks run at the end of each interval. Evidence is stored per interval.",
    )
    extend_max = forms.IntegerField(
        label="Maximum bake times per step",
        min_value=1,
        max_value=1_000,
        initial=3,
        help_text="An undecided step pauses for a person after this number of bake times.",
    )
    wait_max = forms.DecimalField(
        label="Maximum wait for data, h",
        min_value=Decimal(0),
        max_value=Decimal(365 * 24),
        decimal_places=4,
        initial=168,
        help_text="A step without enough data pauses for a person after this time, if it is longer "
        "than the maximum bake times. Models with little traffic need more.",
    )
    margin = forms.DecimalField(
        label="Tolerated error rate above stable, %",
        min_value=Decimal("0.01"),
        max_value=Decimal("99.99"),
        decimal_places=2,
        initial=1,
    )
    alpha = forms.DecimalField(
        label="Maximum false rollbacks of a healthy version, %",
        min_value=Decimal("0.0001"),
        max_value=Decimal(50),
        decimal_places=4,
        initial=1,
        help_text="For the whole rollout, however often the checks run.",
    )
    reference_requests_min = forms.IntegerField(
        label="Requests for the latency reference",
        min_value=1,
        max_value=COUNT_MAX,
        initial=5_000,
        help_text="The minimum number of responses for the reference p50, p95 and p99 of stable.",
    )
    latency_slack = forms.DecimalField(
        label="Latency tolerance, ms",
        min_value=Decimal(0),
        max_value=Decimal(60_000),
        decimal_places=3,
        initial=1,
        help_text="Added to the reference quantiles of stable before the comparison.",
    )
    evidence_mode = forms.ChoiceField(
        label="Roll back on", choices=EVIDENCE_MODES, initial="any_regression"
    )
    control = forms.ChoiceField(
        label="Compared with",
        choices=CONTROLS,
        initial=Control.ALL,
        help_text="An equal slice has cold caches like the canary, but decides later.",
    )
    final_bake = forms.DecimalField(
        label="Final bake, min",
        min_value=Decimal(0),
        max_value=Decimal(LONGEST_BAKE_MIN),
        decimal_places=4,
        initial=0,
        help_text="How long the checks run after the last step before the version becomes "
        "stable. 0: no final bake.",
    )
    holdback = forms.DecimalField(
        label="Holdback, %",
        min_value=Decimal(0),
        max_value=Decimal(5),
        decimal_places=2,
        initial=0,
        help_text="1 to 5 % of the units stay on the previous version until the final bake is "
        "over, as a control. 0: no holdback.",
    )
    rollback_window = forms.DecimalField(
        label="Rollback window, h",
        min_value=Decimal(0),
        max_value=Decimal(365 * 24),
        decimal_places=4,
        initial=24,
        help_text="How long the previous version stays loaded for an instant rollback.",
    )

    ADVANCED = (
        "evidence_mode",
        "control",
        "holdback",
        "rollback_window",
        "interval_s",
        "reference_requests_min",
        "latency_slack",
        "time_scale",
    )

    def advanced(self) -> list[forms.BoundField]:
        """Return the fields of the section Advanced."""
        return [self[name] for name in self.ADVANCED]

    def is_advanced_wrong(self) -> bool:
        return any(name in self.errors for name in self.ADVANCED)

    def document(self, steps: StepFormSet) -> PlanDocument:
        """Return the plan of both forms, which must be valid."""
        data = self.cleaned_data
        return PlanDocument(
            name=data["name"],
            steps=tuple(steps.documents()),
            time_scale_permille=int(data["time_scale"] * 1_000),
            interval_s=data["interval_s"],
            extend_max=data["extend_max"],
            wait_max_s=round(data["wait_max"] * HOUR_S),
            margin_bp=int(data["margin"] * PERCENT_BP),
            alpha_ppm=int(data["alpha"] * 10_000),
            reference_requests_min=data["reference_requests_min"],
            latency_slack_us=int(data["latency_slack"] * 1_000),
            evidence_mode=data["evidence_mode"],
            control=data["control"],
            final_bake_s=round(data["final_bake"] * MINUTE_S),
            holdback_bp=int(data["holdback"] * PERCENT_BP),
            rollback_window_s=round(data["rollback_window"] * HOUR_S),
        )

    @classmethod
    def initial_of(cls, plan: PlanDocument) -> dict[str, Any]:
        return {
            "name": plan.name,
            "time_scale": _plain(plan.time_scale_permille, 1_000),
            "interval_s": plan.interval_s,
            "extend_max": plan.extend_max,
            "wait_max": _plain(plan.wait_max_s, HOUR_S),
            "margin": _plain(plan.margin_bp, PERCENT_BP),
            "alpha": _plain(plan.alpha_ppm, 10_000),
            "reference_requests_min": plan.reference_requests_min,
            "latency_slack": _plain(plan.latency_slack_us, 1_000),
            "evidence_mode": plan.evidence_mode,
            "control": plan.control,
            "final_bake": _plain(plan.final_bake_s, MINUTE_S),
            "holdback": _plain(plan.holdback_bp, PERCENT_BP),
            "rollback_window": _plain(plan.rollback_window_s, HOUR_S),
        }

    @classmethod
    def initial_of_saved(cls, plan: Plan) -> dict[str, Any]:
        more = {"description": plan.description, "is_default": plan.is_default}
        return cls.initial_of(document_of(plan)) | more


class StepForm(forms.Form):
    """One step; an empty row is ignored."""

    weight = forms.DecimalField(
        label="Share, %", min_value=Decimal(0), decimal_places=2, required=False
    )
    shadow = forms.DecimalField(
        label="Shadow, %",
        min_value=Decimal(0),
        max_value=Decimal(100),
        decimal_places=2,
        required=False,
    )
    bake = forms.DecimalField(
        label="Bake, min",
        min_value=0,
        max_value=LONGEST_BAKE_MIN,
        decimal_places=4,
        required=False,
    )
    requests_min = forms.IntegerField(
        label="Minimum requests", min_value=0, max_value=COUNT_MAX, required=False
    )
    gate = forms.ChoiceField(
        label="Gate", choices=GATES, initial=Gate.AUTOMATIC.value, required=False
    )
    gate_role = forms.ChoiceField(
        label="Role", choices=Role.choices, initial=Role.OPERATOR.value, required=False
    )
    checks = forms.MultipleChoiceField(
        choices=[(name, name) for name in PLAIN_CHECKS],
        initial=list(DEFAULT_CHECKS),
        widget=forms.CheckboxSelectMultiple,
        required=False,
    )
    documents = forms.CharField(
        label="Checks with settings, one JSON document per line",
        required=False,
        max_length=20_000,
        # Errors name line numbers, which count leading empty lines.
        strip=False,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "wrap": "off"}),
    )

    def clean_documents(self) -> list[str | CheckDocument]:
        return read_lines(self.cleaned_data["documents"])

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("weight") is not None and data.get("bake") is None and "bake" in data:
            self.add_error("bake", "Enter the bake time of this step.")
        if data.get("weight") is None and "weight" in data and not self.is_empty():
            self.add_error("weight", "Enter the share of this step.")
        return data

    def is_empty(self) -> bool:
        values = {name: str(_or_empty(self[name].value())).strip() for name in self.fields}
        # A shadow share and minimum requests of 0 are the values of an unused row.
        typed = {name: values[name] for name in ("weight", "bake", "documents")}
        return not any(typed.values()) and not {values["shadow"], values["requests_min"]} - {
            "",
            "0",
        }

    def document(self) -> StepDocument | None:
        data = self.cleaned_data
        if data.get("weight") is None:
            return None
        return StepDocument(
            weight_bp=int(data["weight"] * PERCENT_BP),
            shadow_bp=int((data["shadow"] or 0) * PERCENT_BP),
            bake_s=round(data["bake"] * MINUTE_S),
            requests_min=data["requests_min"] or 0,
            checks=(*data["checks"], *data["documents"]),
            gate="person" if data["gate"] == Gate.PERSON else "automatic",
            gate_role=data["gate_role"] or Role.OPERATOR.value,
        )

    @classmethod
    def initial_of(cls, step: StepDocument) -> dict[str, Any]:
        ticked, documents = split_checks(step.checks)
        return {
            "weight": _plain(step.weight_bp, PERCENT_BP),
            "shadow": _plain(step.shadow_bp, PERCENT_BP),
            "bake": _plain(step.bake_s, MINUTE_S),
            "requests_min": step.requests_min,
            "gate": step.gate,
            "gate_role": step.gate_role,
            "checks": ticked,
            "documents": to_lines(documents),
        }


def split_checks(
    checks: Sequence[str | CheckDocument],
) -> tuple[list[str], list[str | CheckDocument]]:
    """Return the leading checks in the order of the checkboxes, and the other checks."""
    places = {name: place for place, name in enumerate(PLAIN_CHECKS)}
    ticked: list[str] = []
    for check in checks:
        last = places[ticked[-1]] if ticked else -1
        if not isinstance(check, str) or places.get(check, -1) <= last:
            break
        ticked.append(check)
    return ticked, list(checks[len(ticked) :])


class StepFormSet(StepForms):
    """The steps in the order of the rows."""

    def shown(self) -> list[StepForm]:
        """Return the rows without those that a person cleared."""
        return [form for form in self.forms if not self.is_bound or not form.is_empty()]

    def documents(self) -> list[StepDocument]:
        documents = [form.document() for form in self.forms]
        return [document for document in documents if document is not None]


make_step_forms: Callable[..., StepFormSet] = forms.formset_factory(  # type: ignore[assignment]
    StepForm, formset=StepFormSet, extra=0, max_num=STEPS_MAX, validate_max=True
)


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _plain(value: int, divisor: int) -> Decimal:
    """Return value/divisor without an exponent or trailing zeros, as a form shows it."""
    number = (Decimal(value) / divisor).quantize(Decimal("0.0001")).normalize()
    return number.quantize(Decimal(1)) if number == number.to_integral() else number
