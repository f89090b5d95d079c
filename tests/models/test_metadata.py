"""Metadata of a version is stored unchanged, or refused with the name of the field."""

from __future__ import annotations

from typing import Any

import pytest

from apps.lib.errors import Invalid
from apps.models.metadata import Metadata


def test_missing_fields_are_omitted() -> None:
    assert Metadata().facts() == {}
    assert Metadata(description="").facts() == {"description": ""}


def test_values_are_converted_for_the_columns() -> None:
    facts = Metadata(
        metrics={"accuracy": 1}, parameters={"C": 1.5, "kind": "svc"}, semantic_tag="v1.2.3+a_b"
    ).facts()
    assert facts["metrics"] == {"accuracy": 1.0}
    assert facts["parameters"] == {"C": "1.5", "kind": "svc"}
    assert facts["semantic_tag"] == "v1.2.3+a_b"


@pytest.mark.parametrize(
    "values",
    [
        {"metrics": []},
        {"metrics": {"a": "0.9"}},
        {"metrics": {"a": True}},
        {"metrics": {"a": float("nan")}},
        {"metrics": {"a": 10**400}},
        {"metrics": {"": 1}},
        {"metrics": {"a\n": 1}},
        {"metrics": {str(i): i for i in range(1_001)}},
        {"parameters": {"a": {}}},
        {"parameters": {"a": "x" * 6_001}},
        {"parameters": {"x" * 251: ""}},
        {"dataset_digest": "x" * 201},
        {"dataset_digest": "\x00"},
        {"semantic_tag": "v1 2"},
        {"semantic_tag": "x" * 51},
        {"description": "x" * 10_001},
        {"run_url": "javascript:alert(1)"},
        {"run_url": "https://"},
        {"run_url": "http://[::1"},
    ],
)
def test_an_invalid_field_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        Metadata(**values).facts()
    assert refused.value.message.startswith(f"{next(iter(values))}:")
