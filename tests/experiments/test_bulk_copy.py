"""Rows are staged for one statement at a time; a value out of range is a DataError."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DataError, transaction

from apps.experiments.bulk_copy import staged

TYPES = {"name": "text", "number": "int8"}


def numbers(*rows: tuple[Any, ...]) -> list[int]:
    with transaction.atomic(), staged("staged_numbers", TYPES, rows) as cursor:
        cursor.execute("SELECT number FROM staged_numbers")
        return [number for (number,) in cursor.fetchall()]


@pytest.mark.django_db
def test_a_second_call_in_one_transaction_reads_only_its_own_rows() -> None:
    assert numbers(("a", 3), ("b", 1)) == [3, 1]
    assert numbers(("c", 2)) == [2]
    assert numbers() == []


@pytest.mark.django_db(transaction=True)
def test_transactions_read_only_their_own_rows() -> None:
    assert [numbers(("a", 3)), numbers(("b", 1))] == [[3], [1]]


@pytest.mark.django_db
def test_an_invalid_value_is_a_data_error() -> None:
    with pytest.raises(DataError):
        numbers(("a\x00", 1))
    assert numbers(("b", 1)) == [1]
