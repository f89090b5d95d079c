"""A tenant's outcomes count for the units of its requests, in any order of arrival."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from apps.experiments.ingestion import apply_exposures, apply_outcomes
from apps.experiments.models import ExposureRow, OutcomeRow, RefusedOutcomes
from apps.experiments.tenant_scope import event_key
from apps.experiments.unit_values import fold_all
from apps.models.models import Tenant
from contract.messages import Outcome
from contract.refusals import OTHERS_UNIT
from tests.experiments.factories import (
    NOW,
    batch,
    exposure,
    make_model,
    make_running,
    outcome,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def tenants() -> None:
    for name in ("shop", "rival"):
        Tenant.objects.create(name=name)


def value_of(unit: str = "u1") -> float | None:
    fold_all()
    values = ExposureRow.objects.get(unit=unit).values
    return None if values is None else values[0]


def sent(tenant: str | None, event_id: str = "e1", value: float = 1.0, **more: Any) -> Outcome:
    return outcome(event_id, tenant=tenant, value=value, **more)


def refusals() -> dict[str, int]:
    return dict(RefusedOutcomes.objects.values_list("reason", "count"))


@pytest.mark.parametrize(
    ("sender", "value"), [("shop", 1.0), (None, 1.0), ("rival", None), ("", None)]
)
def test_only_outcomes_of_the_units_tenants_count(sender: str | None, value: Any) -> None:
    experiment = make_running()
    apply_exposures([batch(exposures=(exposure(experiment, "u1", "weak", tenant="shop"),))], NOW)
    apply_outcomes([batch(outcomes=(sent(sender),))], NOW)
    assert value_of() == value
    assert refusals() == ({OTHERS_UNIT: 1} if value is None else {})


def test_the_order_of_arrival_changes_nothing() -> None:
    experiment = make_running()
    shop, rival = (exposure(experiment, "u1", "weak", tenant=name) for name in ("shop", "rival"))
    arrivals = (
        lambda: apply_exposures([batch(exposures=(shop,))], NOW),
        lambda: apply_exposures([batch(exposures=(rival,))], NOW),
        lambda: apply_outcomes([batch(outcomes=(sent("rival"),))], NOW),
    )
    for order in permutations(arrivals):
        for arrive in order:
            arrive()
        assert value_of() == 1.0
        row = ExposureRow.objects.get()
        assert {row.tenant, *row.also_tenants} == {"shop", "rival"}
        ExposureRow.objects.all().delete()
        OutcomeRow.objects.all().delete()


def test_an_exposure_holds_all_tenants_of_a_batch() -> None:
    experiment = make_running()
    exposures = [
        exposure(experiment, "u1", "weak", tenant=name) for name in ("", "shop", "", "rival")
    ]
    for _ in range(2):
        apply_exposures([batch(exposures=tuple(exposures))], NOW)
    row = ExposureRow.objects.get()
    assert (row.tenant, row.also_tenants, row.crossed_over) == ("", ["rival", "shop"], False)


def test_a_sender_cannot_take_the_event_id_of_another() -> None:
    experiment = make_running()
    apply_exposures([batch(exposures=(exposure(experiment, "u1", "weak", tenant="shop"),))], NOW)
    forged = ("order-7", "@shop:order-7", "@:order-7")
    thefts = [sent(name, event_id, 0.0) for name in ("", "rival") for event_id in forged]
    apply_outcomes([batch(outcomes=(*thefts, sent("shop", "order-7")))], NOW)
    apply_outcomes([batch(outcomes=(sent("shop", "order-7", 0.0),))], NOW)
    assert value_of() == 1.0
    assert OutcomeRow.objects.count() == len(thefts) + 1


def test_event_keys_fit_their_column_and_differ() -> None:
    long = ["x" * 199 + end for end in "ab"]
    tenants = ["", "a", "a" * 100, None]
    ids = ["e", "@a:e", "@:e", *long]
    keys = {event_key(sent(tenant, each)) for tenant in tenants[:3] for each in ids}
    assert len(keys) == 3 * len(ids)
    assert max(map(len, keys)) <= 200
    assert [event_key(sent(None, each)) for each in ids] == ids


@pytest.mark.parametrize(("models", "value"), [((), 1.0), (("flowers",), 1.0), (("x",), None)])
def test_outcomes_count_only_for_models_of_the_senders_key(models: Any, value: Any) -> None:
    experiment = make_running(model=make_model("flowers"))
    apply_exposures([batch(exposures=(exposure(experiment, "u1", "weak", tenant="shop"),))], NOW)
    apply_outcomes([batch(outcomes=(sent("shop", models=models),))], NOW)
    assert value_of() == value


def test_without_tenants_all_outcomes_count() -> None:
    Tenant.objects.all().delete()
    experiment = make_running()
    apply_exposures([batch(exposures=(exposure(experiment, "u1", "weak"),))], NOW)
    apply_outcomes([batch(outcomes=(sent(""),))], NOW)
    assert (value_of(), refusals()) == (1.0, {})
