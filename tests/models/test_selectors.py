"""Traffic shares and the comparison of two versions."""

from __future__ import annotations

from typing import Any

import pytest

from apps.models.models import LiveSplit, ModelVersion, RegisteredModel
from apps.models.selectors import Difference, compare_versions, shares_of
from tests.rollouts.factories import make_signature

STABLE = ModelVersion(
    number=1,
    signature=make_signature(),
    metrics={"accuracy": 0.9, "f1": 0.8},
    parameters={"C": "1.0"},
)


def make_model(document: dict[str, Any] | None) -> RegisteredModel:
    model = RegisteredModel(pk=1, name="digits", stable=STABLE)
    model._state.fields_cache["live_split"] = None
    if document is not None:
        model.live_split = LiveSplit(model=model, kind="canary", document=document)
    return model


def share_rows(model: RegisteredModel) -> list[tuple[str, str, int, int]]:
    return [(s.version, s.variant, s.weight_bp, s.start_bp) for s in shares_of(model)]


def test_a_model_without_a_stable_version_has_no_shares() -> None:
    assert shares_of(RegisteredModel(name="new")) == []


@pytest.mark.parametrize("document", [None, {}])
def test_stable_gets_everything_while_nothing_is_split(document: dict[str, Any] | None) -> None:
    assert share_rows(make_model(document)) == [("1", "stable", 10_000, 0)]


def test_a_canary_takes_its_weight_from_stable() -> None:
    model = make_model({"kind": "canary", "version": "2", "weight_bp": 2_500})

    assert share_rows(model) == [("1", "stable", 7_500, 0), ("2", "canary", 2_500, 7_500)]


def test_at_100_percent_only_the_canary_has_a_share() -> None:
    model = make_model({"kind": "canary", "version": "2", "weight_bp": 10_000})

    assert share_rows(model) == [("2", "canary", 10_000, 0)]


def test_the_shares_of_an_experiment_sum_to_all_traffic() -> None:
    variants = [
        {"name": "weak", "version": "1", "weight_bp": 3_333},
        {"name": "strong", "version": "2", "weight_bp": 6_667},
    ]
    model = make_model({"kind": "experiment", "coverage_bp": 5_001, "variants": variants})

    shares = shares_of(model)

    assert [s.variant for s in shares] == ["stable", "weak", "strong"]
    assert sum(s.weight_bp for s in shares) == 10_000


def test_a_comparison_has_changes_and_one_sided_items() -> None:
    target = ModelVersion(
        number=2,
        signature=make_signature(),
        metrics={"accuracy": 0.95, "recall": 0.7},
        parameters={"C": "1.0"},
    )

    comparison = compare_versions(target, STABLE)

    accuracy, f1, recall = comparison.metrics
    assert accuracy.change == pytest.approx(0.05)
    assert (f1.stable, f1.target, f1.change) == (0.8, None, None)
    assert (recall.stable, recall.target) == (None, 0.7)
    assert not comparison.parameters[0].differs
    assert not comparison.signature_differs


def test_a_comparison_detects_another_shape() -> None:
    target = ModelVersion(number=2, signature=make_signature(32), metrics={}, parameters={})

    comparison = compare_versions(target, STABLE)

    assert comparison.signature_differs
    assert comparison.inputs == [Difference("pixels", "FP32 [∗, 64]", "FP32 [∗, 32]")]


def test_a_first_version_is_compared_with_nothing() -> None:
    comparison = compare_versions(STABLE, None)

    assert [row.stable for row in comparison.metrics] == [None, None]
