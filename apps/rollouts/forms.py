"""Forms of promotion, rollout actions, the rollout filter and the serving history."""

from __future__ import annotations

from typing import Any

from django import forms

from apps.models.models import ModelVersion, RegisteredModel
from apps.models.selectors import promotable_versions
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.selectors.rollouts import steps_of_saved
from apps.rollouts.states import Phase

PERCENT_BP = 100


class PromoteForm(forms.Form):
    """The version to promote and the plan."""

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
        # The first version of a model has no control and follows no plan.
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
    """The revision that the page showed; the service refuses a stale one."""

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


class LocalInstant(forms.DateTimeInput):
    """A native date and time field, read as UTC."""

    input_type = "datetime-local"

    def __init__(self, **attrs: Any) -> None:
        super().__init__(attrs={"step": 1, **attrs}, format="%Y-%m-%dT%H:%M:%S")


class InstantForm(forms.Form):
    at = forms.DateTimeField(label="Time, UTC", widget=LocalInstant())
