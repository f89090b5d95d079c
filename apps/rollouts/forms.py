"""What people send: which version by which plan, what they saw when they acted, and plans."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms

from apps.models.models import NAME_RULE, ModelVersion, RegisteredModel, valid_name
from apps.models.selectors import promotable_versions
from apps.rollouts.check_kinds import DEFAULT_CHECKS
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.selectors.rollouts import steps_of_saved
from apps.rollouts.states import Phase

if TYPE_CHECKING:
    StepForms = forms.BaseFormSet["StepForm"]
else:
    StepForms = forms.BaseFormSet

STEPS_MAX = 20
PERCENT_BP = 100
MINUTE_S = 60
LONGEST_BAKE_MIN = 30 * 24 * 60


class PromoteForm(forms.Form):
    """Which version becomes stable, and how carefully."""

    version = forms.ModelChoiceField(
        queryset=ModelVersion.objects.none(), to_field_name="number", empty_label=None
    )
    plan = forms.ModelChoiceField(
        queryset=Plan.objects.prefetch_related("steps"), to_field_name="name", empty_label=None
    )

    def __init__(self, model: RegisteredModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = promotable_versions(model).prefetch_related("aliases")
        self._choices_of("version").queryset = versions
        self._choices_of("version").label_from_instance = _name_version
        self._choices_of("plan").label_from_instance = _name_plan
        # A model's first version has nothing to be compared with, and so follows no plan.
        self.fields["plan"].required = model.stable_id is not None

    def _choices_of(self, name: str) -> Any:
        return self.fields[name]


def _name_version(version: Any) -> str:
    names = [str(alias) for alias in version.aliases.all()]
    more = ", ".join(filter(None, [version.semantic_tag, *names]))
    return f"{version.number} ({more})" if more else str(version.number)


def _name_plan(plan: Plan) -> str:
    steps = " → ".join(f"{step.weight_bp / PERCENT_BP:g}" for step in steps_of_saved(plan))
    return f"{plan.name}: {steps} %" + (" (default)" if plan.is_default else "")


class ActionForm(forms.Form):
    """What the person saw when acting: a stale revision is refused by the service."""

    revision = forms.IntegerField(min_value=0)
    reason = forms.CharField(required=False, max_length=500)


class RolloutFilterForm(forms.Form):
    model = forms.ModelChoiceField(
        queryset=RegisteredModel.objects.all(),
        to_field_name="name",
        required=False,
        empty_label="All models",
    )
    phase = forms.ChoiceField(choices=[("", "All phases"), *Phase.choices], required=False)
    kind = forms.ChoiceField(choices=[("", "All kinds"), *Rollout.Kind.choices], required=False)


class PlanForm(forms.Form):
    """A plan without its steps."""

    name = forms.CharField(
        max_length=100, validators=[valid_name], help_text=f"{NAME_RULE.capitalize()}."
    )
    description = forms.CharField(
        required=False, max_length=1_000, widget=forms.Textarea(attrs={"rows": 2})
    )
    is_default = forms.BooleanField(required=False, label="The default plan")
    time_scale = forms.DecimalField(
        label="Time scale",
        min_value=Decimal("0.001"),
        max_value=Decimal(100),
        decimal_places=3,
        initial=1,
        help_text="Multiplies every bake time: 0.01 makes 30 minutes 18 seconds.",
    )
    interval_s = forms.IntegerField(
        label="Check interval, s",
        min_value=1,
        max_value=3_600,
        initial=10,
        help_text="Checks run at the end of each interval; evidence is kept per interval.",
    )
    extend_max = forms.IntegerField(
        label="Bake times until it pauses",
        min_value=1,
        max_value=100,
        initial=3,
        help_text="A step that cannot be decided goes on for so many bake times, "
        "then waits for a person.",
    )
    margin = forms.DecimalField(
        label="Tolerated error rate above stable, %",
        min_value=Decimal("0.01"),
        max_value=Decimal(50),
        decimal_places=2,
        initial=1,
    )
    alpha = forms.DecimalField(
        label="False rollbacks of a healthy version, % at most",
        min_value=Decimal("0.0001"),
        max_value=Decimal(50),
        decimal_places=4,
        initial=1,
        help_text="For the whole rollout, however often one looks.",
    )
    reference_requests_min = forms.IntegerField(
        label="Requests for the latency reference",
        min_value=1,
        max_value=10_000_000,
        initial=5_000,
        help_text="Stable's usual p95 and p99 are frozen from at least so many answers.",
    )
    latency_slack = forms.DecimalField(
        label="Slower by this is nobody's concern, ms",
        min_value=Decimal(0),
        max_value=Decimal(60_000),
        decimal_places=3,
        initial=1,
        help_text="Added to stable's usual p95 and p99 before the latency check compares.",
    )

    def document(self, steps: StepFormSet) -> PlanDocument:
        """Return the plan that both forms describe; they must be valid."""
        data = self.cleaned_data
        return PlanDocument(
            name=data["name"],
            steps=tuple(steps.documents()),
            time_scale_permille=int(data["time_scale"] * 1_000),
            interval_s=data["interval_s"],
            extend_max=data["extend_max"],
            margin_bp=int(data["margin"] * PERCENT_BP),
            alpha_ppm=int(data["alpha"] * 10_000),
            reference_requests_min=data["reference_requests_min"],
            latency_slack_us=int(data["latency_slack"] * 1_000),
        )

    @classmethod
    def initial_of(cls, plan: Plan) -> dict[str, Any]:
        return {
            "name": plan.name,
            "description": plan.description,
            "is_default": plan.is_default,
            "time_scale": _plain(plan.time_scale_permille, 1_000),
            "interval_s": plan.interval_s,
            "extend_max": plan.extend_max,
            "margin": _plain(plan.margin_bp, PERCENT_BP),
            "alpha": _plain(plan.alpha_ppm, 10_000),
            "reference_requests_min": plan.reference_requests_min,
            "latency_slack": _plain(plan.latency_slack_us, 1_000),
        }


class StepForm(forms.Form):
    """One step; a row without a share is left out."""

    weight = forms.DecimalField(
        label="Share, %", min_value=Decimal(0), decimal_places=2, required=False
    )
    bake = forms.DecimalField(
        label="Bake, min",
        min_value=0,
        max_value=LONGEST_BAKE_MIN,
        decimal_places=2,
        required=False,
    )
    requests_min = forms.IntegerField(
        label="Requests at least", min_value=0, max_value=1_000_000_000, required=False
    )
    checks = forms.MultipleChoiceField(
        choices=[(name, name) for name in DEFAULT_CHECKS],
        initial=list(DEFAULT_CHECKS),
        widget=forms.CheckboxSelectMultiple,
        required=False,
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("weight") is not None and data.get("bake") is None and "bake" in data:
            self.add_error("bake", "Say how long this step bakes.")
        if data.get("weight") is None and (data.get("bake") or data.get("requests_min")):
            self.add_error("weight", "Say which share this step gets.")
        return data

    def is_empty(self) -> bool:
        return not any(self[name].value() for name in ("weight", "bake", "requests_min"))

    def document(self) -> StepDocument | None:
        data = self.cleaned_data
        if data.get("weight") is None:
            return None
        return StepDocument(
            weight_bp=int(data["weight"] * PERCENT_BP),
            bake_s=int(data["bake"] * MINUTE_S),
            requests_min=data["requests_min"] or 0,
            checks=tuple(data["checks"]),
        )

    @classmethod
    def initial_of(cls, step: StepDocument) -> dict[str, Any]:
        return {
            "weight": _plain(step.weight_bp, PERCENT_BP),
            "bake": _plain(step.bake_s, MINUTE_S),
            "requests_min": step.requests_min,
            "checks": list(step.checks),
        }


class StepFormSet(StepForms):
    """The steps in the order of the rows."""

    def shown(self) -> list[StepForm]:
        """Return the rows without those that a person emptied."""
        return [form for form in self.forms if not self.is_bound or not form.is_empty()]

    def documents(self) -> list[StepDocument]:
        found = [form.document() for form in self.forms]
        return [document for document in found if document is not None]


make_step_forms: Callable[..., StepFormSet] = forms.formset_factory(  # type: ignore[assignment]
    StepForm, formset=StepFormSet, extra=0, max_num=STEPS_MAX, validate_max=True
)


def _plain(value: int, divisor: int) -> Decimal:
    """Return value/divisor without an exponent or needless digits, as a form shows it."""
    number = (Decimal(value) / divisor).quantize(Decimal("0.0001")).normalize()
    return number.quantize(Decimal(1)) if number == number.to_integral() else number
