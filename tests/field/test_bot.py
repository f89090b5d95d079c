"""One unit sends 100 outcomes of 1,000, nearly all of its arm's sum: a notice reports it."""

from __future__ import annotations

import pytest

from apps.experiments.models import Metric
from apps.experiments.result_tables.notices import notices
from apps.experiments.results import compute_result
from apps.experiments.services import MetricChoice
from apps.experiments.unit_values import fold_all
from cli.experiments import remarks
from tests.experiments.factories import NOW, expose, make_running, observe

pytestmark = pytest.mark.django_db

NOTICE = "One unit has 98.1% of strong's sum of revenue"


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        (None, [f"{NOTICE}; set a cap to limit the weight of one unit."]),
        (1e6, [f"{NOTICE}."]),
        (50.0, []),
    ],
)
def test_a_bot_is_reported_on_the_page_and_by_the_cli(
    cap: float | None, expected: list[str]
) -> None:
    metric = Metric.objects.create(name="revenue", kind="mean", per_unit="sum", cap=cap)
    experiment = make_running(metrics=[MetricChoice(metric)])
    for i in range(100):
        expose(experiment, f"w{i}", "weak")
        observe(metric, f"w{i}", 20.0)
        expose(experiment, f"s{i}", "strong")
        observe(metric, f"s{i}", 20.0)
    for k in range(100):
        observe(metric, "s0", 1_000.0, 2.0 + k / 1_000)
    fold_all()

    result = compute_result(experiment, NOW).result

    assert result is not None
    assert [n.text for n in notices(result) if "One unit" in n.text] == expected
    assert remarks(result) == expected
