"""Plans that two people change at once: one of them gets a Conflict."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.db import connection, transaction

from apps.lib.errors import Conflict, Invalid
from apps.rollouts.models import Plan
from apps.rollouts.plan_store import delete_plan, save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from tests.rollouts.factories import ANNA, make_plan


def document(name: str = "canary", **fields: Any) -> PlanDocument:
    return PlanDocument(name=name, steps=(StepDocument(weight_bp=500),), **fields)


def beside(act: Any) -> tuple[threading.Thread, list[Exception]]:
    """Begin `act` in a thread with a connection of its own; return what it raises."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            raised.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    return thread, raised


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_default", [False, True])
def test_who_saves_the_same_new_plan_second_is_told(is_default: bool) -> None:
    names = ("a", "b") if is_default else ("a", "a")
    with transaction.atomic():
        save_plan(document=document(names[0]), is_default=is_default, actor=ANNA)
        thread, raised = beside(
            lambda: save_plan(document=document(names[1]), is_default=is_default, actor=ANNA)
        )
    thread.join()

    assert [type(error) for error in raised] == [Conflict]
    assert Plan.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_changes_of_a_plan_leave_the_steps_of_one() -> None:
    plan = make_plan()
    with transaction.atomic():
        save_plan(document=document(margin_bp=50), is_default=True, plan=plan, actor=ANNA)
        thread, raised = beside(
            lambda: save_plan(
                document=document(margin_bp=70), is_default=True, plan=plan, actor=ANNA
            )
        )
    thread.join()

    assert not raised
    assert (Plan.objects.get().margin_bp, Plan.objects.get().steps.count()) == (70, 1)


@pytest.mark.django_db
def test_a_plan_that_was_deleted_meanwhile_does_not_come_back() -> None:
    make_plan()
    plan = save_plan(document=document("other"), actor=ANNA)
    delete_plan(plan=Plan.objects.get(name="other"), actor=ANNA)

    with pytest.raises(Conflict, match="does not exist any more"):
        save_plan(document=document("other"), plan=plan, actor=ANNA)

    assert not Plan.objects.filter(name="other").exists()


@pytest.mark.django_db
def test_the_default_plan_stays_it_until_another_one_is() -> None:
    plan = make_plan()

    with pytest.raises(Invalid, match="another plan the default"):
        save_plan(document=document(margin_bp=50), is_default=False, plan=plan, actor=ANNA)

    assert Plan.objects.get().margin_bp == 100
