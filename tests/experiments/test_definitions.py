"""Drafts of experiments: creating, refusals, editing and deleting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apps.experiments.definitions import (
    create_experiment,
    delete_experiment,
    edit_experiment,
)
from apps.experiments.draft_checks import MetricChoice, VariantSpec
from apps.experiments.models import Experiment, Metric
from apps.experiments.services import start_experiment
from apps.experiments.states import ExperimentState
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry
from tests.experiments.factories import (
    ANNA,
    HALVES,
    NOW,
    make_draft,
    make_metric,
    make_model,
    make_version,
)

pytestmark = pytest.mark.django_db

WEAK, STRONG = HALVES
WEAK2 = replace(STRONG, weight_bp=1)
THIRDS = [replace(WEAK, weight_bp=3_334), replace(STRONG, weight_bp=3_333)]
THIRDS += [replace(STRONG, name="again", weight_bp=3_333)]
OTHER_SIGNATURE: dict[str, Any] = {"inputs": [], "outputs": []}


def test_a_draft_has_its_variants_an_event_and_an_audit_entry() -> None:
    experiment = make_draft()

    assert experiment.state == ExperimentState.DRAFT
    assert [(v.name, v.version.number, v.weight_bp) for v in experiment.variants.all()] == [
        ("weak", 1, 5_000),
        ("strong", 2, 5_000),
    ]
    assert experiment.events.get().to_state == "draft"
    assert AuditEntry.objects.get(action="experiment.created").actor == "anna"
    assert experiment.inclusion_salt != experiment.variant_salt


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([WEAK], "2 to 20 variants, not 1"),
        ([WEAK, replace(STRONG, weight_bp=4_999)], "weights sum to 9999 basis points"),
        ([WEAK, replace(STRONG, weight_bp=-1)], "weight_bp is -1"),
        (
            [WEAK, replace(STRONG, is_control=True)],
            "exactly one variant must be the control, not 2",
        ),
        (
            [replace(WEAK, is_control=False), STRONG],
            "exactly one variant must be the control, not 0",
        ),
        ([WEAK, replace(STRONG, version_number=None)], "variant strong: version is missing"),
        ([WEAK, replace(STRONG, name="holdout")], "reserved"),
        ([WEAK, replace(STRONG, name="weak")], "two variants are named weak"),
        ([WEAK, replace(STRONG, name="stable")], "reserved"),
        ([WEAK, replace(STRONG, name="a b")], "A name has"),
        ([WEAK, replace(STRONG, version_number=9)], "digits has no version 9"),
        (
            [replace(WEAK, weight_bp=0), replace(STRONG, weight_bp=10_000)],
            "control variant weak needs a weight above 0",
        ),
    ],
)
def test_it_refuses_invalid_variants(variants: list[VariantSpec], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        make_draft(variants=variants)

    assert not Experiment.objects.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coverage_bp": 0}, "coverage_bp is 0"),
        ({"coverage_bp": 10_001}, "coverage_bp is 10001"),
        ({"planned_units": 0}, "planned_units is 0"),
        ({"alpha_ppm": 0}, "alpha_ppm is 0"),
        ({"name": "a/b"}, "name: A name has"),
        ({"holdout_bp": 5_001}, "holdout_bp is 5001"),
        ({"covariate_s": 90 * 86_400 + 1}, "covariate_s is 7776001"),
        ({"tenants": ["nobody"]}, "there is no tenant 'nobody'"),
        ({"headers": {"x beta": ["on"]}}, "'x beta' is not a valid header name"),
        ({"headers": {"x-beta": []}}, "x-beta needs a list of at least one value"),
        ({"headers": {"x-beta": [" on"]}}, "is not a valid value of x-beta"),
        ({"headers": {"Authorization": ["x"]}}, "the values of authorization are secrets"),
        ({"dimensions": list("abcdef")}, "the limit is 5"),
        ({"dimensions": ["tenant", "tenant"]}, "tenant appears twice"),
        ({"dimensions": ["tenant"], "stratify_by": "x"}, "unknown dimension 'x'"),
        ({"name": ""}, "name: "),
    ],
)
def test_it_refuses_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        make_draft(**fields)


def test_it_refuses_a_model_without_a_stable_version() -> None:
    model = make_model()
    model.stable = None
    model.save()

    with pytest.raises(Invalid, match="digits has no stable version"):
        make_draft(model=model)


def test_it_refuses_a_version_of_another_signature() -> None:
    model = make_model(versions=1)
    make_version(model, 2, signature=OTHER_SIGNATURE)

    with pytest.raises(Invalid, match="the signature of digits:2 differs"):
        make_draft(model=model)


def test_it_refuses_a_name_that_is_taken() -> None:
    first = make_draft()

    with pytest.raises(Conflict, match="already exists"):
        make_draft(model=first.model, metric=first.metric)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "1 to 20 metrics, not 0"),
        ([{"role": "secondary"}], "exactly one metric must be primary, not 0"),
        ([{"role": "best"}], "unknown role 'best'"),
        ([{}, {"role": "secondary"}], "metric accuracy appears twice"),
        ([{"margin": 0.1}], "only a guardrail has a margin"),
        ([{"mann_whitney": True}], "this is a proportion"),
        ([{"role": "guardrail"}], "needs either 'margin' or 'margin_relative'"),
        ([{"role": "guardrail", "margin_relative": 0.1}], "margin_relative needs baseline"),
        ([{"role": "guardrail", "margin": 0.0}], "must be a number above 0"),
        ([{"role": "guardrail", "margin": float("nan")}], "must be a number above 0"),
        ([{"role": "guardrail", "margin": 1.0}], "below 1"),
    ],
)
def test_it_refuses_invalid_metrics(choices: list[dict[str, Any]], message: str) -> None:
    metric = make_metric()
    # A guardrail alone is refused because a primary metric is missing, so add one.
    primary = [MetricChoice(make_metric("other"))] if "guardrail" in str(choices) else []

    with pytest.raises(Invalid, match=message):
        create_experiment(
            name="x",
            model=make_model(),
            metrics=[*primary, *(MetricChoice(metric, **choice) for choice in choices)],
            variants=HALVES,
            actor=ANNA,
            now=NOW,
        )


def test_a_relative_margin_is_stored_in_the_metrics_unit_and_the_primary_comes_first() -> None:
    guarded = MetricChoice(
        make_metric("latency", "mean"), "guardrail", margin_relative=0.05, baseline=-200.0
    )

    experiment = make_draft(metrics=[guarded, MetricChoice(make_metric())])

    uses = [(use.metric.name, use.role, use.margin) for use in experiment.metric_uses.all()]
    assert uses == [("accuracy", "primary", None), ("latency", "guardrail", 10.0)]
    assert experiment.metric.name == "accuracy"


def test_an_edit_applies_as_a_whole_or_not_at_all() -> None:
    experiment = make_draft()

    with pytest.raises(Invalid, match="weights sum"):
        edit_experiment(
            experiment=experiment, actor=ANNA, now=NOW, coverage_bp=100, variants=[WEAK, WEAK2]
        )
    edited = edit_experiment(
        experiment=experiment, actor=ANNA, now=NOW, revision=0, coverage_bp=100, variants=THIRDS
    )

    assert (edited.coverage_bp, edited.revision) == (100, 1)
    assert [v.name for v in edited.variants.all()] == ["weak", "strong", "again"]
    assert AuditEntry.objects.get(action="experiment.edited").before["coverage_bp"] == 10_000


def test_a_started_experiment_is_neither_edited_nor_deleted() -> None:
    experiment = make_draft()
    stale = Experiment.objects.get(pk=experiment.pk)
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)

    with pytest.raises(Conflict, match="only a draft can be edited"):
        edit_experiment(experiment=experiment, actor=ANNA, now=NOW, coverage_bp=100)
    with pytest.raises(Conflict, match="only a draft can be deleted"):
        delete_experiment(experiment=stale, actor=ANNA, now=NOW)
    with pytest.raises(Conflict):
        edit_experiment(experiment=stale, actor=ANNA, now=NOW, revision=0, coverage_bp=100)


def test_a_draft_is_deleted_and_its_name_is_free_again() -> None:
    experiment = make_draft()

    delete_experiment(experiment=experiment, actor=ANNA, now=NOW)

    make_draft(model=experiment.model, metric=Metric.objects.get())
