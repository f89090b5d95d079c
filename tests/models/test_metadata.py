"""What is said of a version is kept as it was, or refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest

from apps.lib.errors import Invalid
from apps.models.metadata import Metadata


def test_what_was_not_said_is_no_fact() -> None:
    assert Metadata().facts() == {}
    assert Metadata(description="").facts() == {"description": ""}


def test_values_become_what_the_columns_hold() -> None:
    facts = Metadata(
        metrics={"accuracy": 1}, parameters={"C": 1.5, "kind": "svc"}, semantic_tag="v1.2.3+a_b"
    ).facts()
    assert facts["metrics"] == {"accuracy": 1.0}
    assert facts["parameters"] == {"C": "1.5", "kind": "svc"}
    assert facts["semantic_tag"] == "v1.2.3+a_b"


@pytest.mark.parametrize(
    "said",
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
def test_what_cannot_be_kept_is_refused_by_name(said: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        Metadata(**said).facts()
    assert refused.value.message.startswith(f"{next(iter(said))}:")
