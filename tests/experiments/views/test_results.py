"""The page of an experiment: without data, with a result, with 10 variants and 20 metrics."""

from __future__ import annotations

import csv
import io
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse

from apps.experiments.models import Experiment, Metric, ResultPoint
from apps.experiments.selectors.results import COURSE_MAX, course
from apps.experiments.services import (
    MetricChoice,
    VariantSpec,
    abandon_experiment,
    start_experiment,
    stop_experiment,
)
from tests.experiments.factories import (
    ANNA,
    HALVES,
    NOW,
    make_draft,
    make_metric,
    make_model,
    make_running,
)
from tests.experiments.stored import (
    NOTHING_SEEN,
    comparison,
    guardrail,
    many,
    metric,
    stored_result,
)
from tests.experiments.views.pages import (
    HTMX,
    PAGE,
    figure,
    make_analysed,
    stamp,
    store,
    text_of,
)

pytestmark = pytest.mark.django_db
FIGURES = ("intervals", "course", "exposures", "distribution", "posterior")


def test_a_page_without_data_says_so_and_draws_nothing(viewer: Client) -> None:
    make_analysed(NOTHING_SEEN)

    page = text_of(viewer, PAGE)

    assert "Not enough data" in page
    assert "NaN" not in page
    assert [figure(page, name)["data"] for name in FIGURES] == [[]] * 5


def test_a_page_before_the_first_result_has_its_variants(viewer: Client) -> None:
    make_running()

    page = text_of(viewer, PAGE)

    assert "No result yet" in page
    assert page.count('data-label="Variant"') == 2


def test_a_page_shows_the_verdict_and_both_readings(viewer: Client) -> None:
    make_analysed(stored_result())

    page = text_of(viewer, PAGE)

    assert "strong is better than weak" in page
    assert 'data-label="Interval, every look" class="num">+7 to +21' in page
    assert 'data-label="Interval, one look" class="num muted">+10 to +18' in page
    assert "not valid under peeking" in page
    assert "Metrics by variant" not in page


def test_metrics_are_grouped_by_role_and_one_is_shown_in_full(viewer: Client) -> None:
    result = stored_result(metric(), metric("revenue", role="secondary", kind="mean"))
    make_analysed(result)

    page = text_of(viewer, f"{PAGE}?metric=revenue")

    assert "Metrics by variant" in page
    assert "Variants by revenue" in page
    assert "live/?metric=revenue&amp;stamp=" in page
    assert figure(page, "intervals")["data"][0]["x"] == [0.14]


def test_ten_variants_by_twenty_metrics_fit(viewer: Client) -> None:
    specs = [VariantSpec(f"v{i}", i + 1, 1_000, is_control=i == 0) for i in range(10)]
    make_analysed(many(), model=make_model(versions=10), variants=specs)

    page = text_of(viewer, PAGE)

    assert page.count('scope="row">') == 20
    assert page.count("within the margin") >= 45
    assert len(figure(page, "exposures")["data"]) == 10


def test_a_variant_that_is_missing_from_the_result_is_shown_without_numbers(
    viewer: Client,
) -> None:
    make_analysed(stored_result(metric(names=("weak", "strong"), comparisons=[])))

    assert "–" in text_of(viewer, PAGE)


def test_guardrail_breakdowns_and_hold_out_have_their_tables(viewer: Client) -> None:
    compared = {"arm": "strong", "n": 5, "control_n": 6, "difference": 0.1, "is_significant": True}
    level = {"level": "shop", "comparisons": [compared]}
    tables = [{"metric": "errors", "dimension": "tenant", "levels": [level]}]
    held = {"units": 60, "means": {"accuracy": 0.5}}
    make_analysed(stored_result(metric(), guardrail("errors"), breakdowns=tables, holdout=held))

    page = text_of(viewer, f"{PAGE}?metric=errors")

    assert 'data-label="Bound" class="num">-0.4 points' in page
    assert "errors by tenant" in page
    assert "Holm" in page
    assert "60 units get stable in every experiment" in page


def test_attribution_has_a_table_and_a_notice(viewer: Client) -> None:
    counts = {"in_time": 3, "before": 600, "before_mean_s": 57, "after_window": 0}
    counted = {"since": "", "skew_s": 5, "metrics": {"accuracy": counts | {"unknown_units": 4}}}
    make_analysed(stored_result(metric(), attribution=counted))

    page = text_of(viewer, PAGE)

    assert "Attribution of outcomes" in page
    assert "by 57 s on average" in page
    assert "600 of 603 outcomes of exposed units are dated before" in page


def test_covariates_and_ranks_are_shown_if_present(viewer: Client) -> None:
    compared = comparison("strong", variance_reduction=0.31, mann_whitney_p=0.034)
    make_analysed(stored_result(metric(comparisons=[compared])))

    page = text_of(viewer, PAGE)

    assert 'data-label="CUPED" class="num">31 %' in page
    assert 'data-label="Mann–Whitney" class="num">0.034' in page


def test_values_of_a_latency_are_in_milliseconds(viewer: Client) -> None:
    latency = Metric.objects.create(name="latency", kind="mean", source="latency")
    make_analysed(stored_result(metric("latency", kind="mean")), metric=latency)

    assert "<b>0.8 ms</b>" in text_of(viewer, PAGE)


def test_a_failed_analysis_and_a_mismatch_are_shown_first(viewer: Client) -> None:
    ratio = {"state": "srm", "reason": "units 9 : 1"}
    experiment = make_analysed(stored_result(sample_ratio=ratio))
    store(experiment, experiment.result, refresh_error="DataError: x")

    page = text_of(viewer, PAGE)

    assert page.index("DataError: x") < page.index("Sample ratio mismatch") < page.index("Verdict")


def test_a_poll_without_changes_returns_204(viewer: Client) -> None:
    experiment = make_running()
    shown = stamp(text_of(viewer, PAGE))

    unchanged = viewer.get(f"{PAGE}live/?stamp={shown}", headers=HTMX)
    store(experiment, stored_result())
    changed = viewer.get(f"{PAGE}live/?stamp={shown}", headers=HTMX)

    assert unchanged.status_code == 204
    assert changed.status_code == 200
    fragment = changed.content.decode()
    assert fragment.startswith('<div id="live"')
    assert fragment.count('hx-swap-oob="true"') == 2


def test_a_poll_without_changes_reads_no_result(
    viewer: Client, django_assert_max_num_queries: object
) -> None:
    make_analysed(many(), model=make_model(versions=2))
    shown = stamp(text_of(viewer, PAGE))

    with django_assert_max_num_queries(8) as queries:  # type: ignore[operator]
        viewer.get(f"{PAGE}live/?stamp={shown}", headers=HTMX)

    assert not any('"result"' in query["sql"] for query in queries.captured_queries)


def test_a_stopped_experiment_shows_that_its_final_result_is_pending(viewer: Client) -> None:
    experiment = make_analysed(stored_result())
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)

    awaited = text_of(viewer, PAGE)
    store(experiment, stored_result(phase="final"))
    final = text_of(viewer, PAGE)

    assert "The final analysis is pending" in awaited
    assert "live/?" in awaited
    assert "Final verdict" in final
    assert "Frozen" in final
    assert "live/?" not in final


def test_an_experiment_abandoned_without_data_has_no_verdict(viewer: Client) -> None:
    abandon_experiment(experiment=make_running(), actor=ANNA, now=NOW)

    page = text_of(viewer, PAGE)

    assert "there is no verdict" in page
    assert "abandoned" in page


def test_a_preparing_experiment_lists_its_deployments(viewer: Client) -> None:
    start_experiment(experiment=make_draft(), actor=ANNA, now=NOW)

    page = text_of(viewer, PAGE)

    assert "digits:2 on local" in page
    assert "loading" in page


def test_an_unknown_experiment_is_not_found(viewer: Client) -> None:
    for path in ("", "live/", "results.csv", "results.json"):
        assert viewer.get(f"/experiments/nope/{path}").status_code == 404


def test_a_hostile_name_is_shown_as_text(viewer: Client) -> None:
    make_draft(hypothesis="<script>alert(1)</script>", variants=HALVES)

    assert "<script>alert" not in text_of(viewer, PAGE)
    assert "<script>alert" not in text_of(viewer, f"{PAGE}?metric=<script>alert(1)</script>")


def test_the_result_is_available_as_csv_and_json(viewer: Client) -> None:
    experiment = make_analysed(stored_result())

    table = viewer.get(f"{PAGE}results.csv")
    document = viewer.get(f"{PAGE}results.json")

    rows = list(csv.DictReader(io.StringIO(table.content.decode())))
    assert [row["arm"] for row in rows] == ["weak", "strong"]
    assert table["Content-Disposition"] == 'attachment; filename="weak-or-strong.csv"'
    assert document.json() == experiment.result


def test_files_need_a_login(client: Client) -> None:
    make_analysed(stored_result())

    assert client.get(f"{PAGE}results.csv").status_code == 302


def test_the_course_is_thinned_and_keeps_its_last_point() -> None:
    experiment = make_running()
    count = COURSE_MAX * 2 + 50
    ResultPoint.objects.bulk_create(
        ResultPoint(
            experiment=experiment,
            at=NOW + timedelta(seconds=i),
            numbers={"2024": {"strong": [float(i), None, None, i]}, "other": {}},
        )
        for i in range(count)
    )

    points = course(experiment, "2024")

    assert len(points) <= COURSE_MAX
    assert points[-1][1]["strong"][0] == count - 1
    assert course(experiment, "2024", until=NOW)[-1][1]["strong"][0] == 0.0
    assert course(experiment, "other") == []


@pytest.mark.parametrize("name", ["experiment", "experiment-start", "experiment-stop"])
def test_the_names_of_pages_do_not_lead_to_the_api(name: str) -> None:
    assert reverse(name, args=["x"]).startswith("/experiments/x/")


def test_the_setup_shows_targeting_and_analysis(viewer: Client) -> None:
    uses = [MetricChoice(make_metric()), MetricChoice(make_metric("errors"), "guardrail", 0.01)]
    make_draft(
        metrics=uses,
        headers={"x-country": ["de", "at"]},
        dimensions=["x-country"],
        stratify_by="x-country",
        covariate_s=86_400,
        holdout_bp=150,
    )

    page = text_of(viewer, PAGE)

    for text in ("de or at", "post-stratified by x-country", "1 d before", "1.5 % of units"):
        assert text in page
    assert "margin 0.01" in page
    assert Experiment.objects.get().state == "draft"


def test_the_page_shows_weight_phases_and_the_basis_of_comparisons(viewer: Client) -> None:
    phases = [
        {"at": "2026-03-01T12:00:00+00:00", "weights_bp": {"weak": 9_000, "strong": 1_000},
         "units": {"weak": 4_321, "strong": 321}},
        {"at": "2026-03-02T12:00:00+00:00", "weights_bp": {"weak": 5_000, "strong": 5_000},
         "units": {"weak": 1, "strong": 2}},
    ]  # fmt: skip
    over = {"basis": "phases", "phases": 2, "left_out": 12, "control_value": 0.8, "value": 0.9}
    make_analysed(stored_result(metric(comparisons=[comparison("strong", **over)]), phases=phases))

    page = text_of(viewer, PAGE)

    assert "Weight phases" in page
    assert "4,321" in page
    assert "90 % vs 80 % within 2 phases; 12 units left out" in page


def test_the_page_of_weights_that_never_changed_has_no_phases(viewer: Client) -> None:
    make_analysed(stored_result(phases=[{"at": None, "weights_bp": {}, "units": {}}]))

    assert "Weight phases" not in text_of(viewer, PAGE)
