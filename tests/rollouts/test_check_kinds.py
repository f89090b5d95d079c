"""The list of checks is what docs/checks.md says, example by example and bound by bound."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apps.experiments.models import Metric
from apps.lib.errors import Invalid
from apps.rollouts.check_kinds import KINDS, CheckDocument, problem_of_check, require_check

TOLD = (Path(__file__).parents[2] / "docs" / "checks.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", TOLD, re.DOTALL)
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in TOLD.split("## Kinds")[1].splitlines()
    if line.startswith("| ") and line.count("|") == 7 and "---" not in line
][1:]


@pytest.mark.django_db
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_page_may_be_in_a_plan(example: str) -> None:
    Metric.objects.create(name="accuracy", kind=Metric.Kind.PROPORTION)
    for name in ("label", "delivered_minutes"):
        Metric.objects.create(name=name, kind=Metric.Kind.MEAN)
    check = msgspec.json.decode(example, type=CheckDocument)
    assert problem_of_check(check) == ""


def test_the_page_has_every_kind_with_its_mode_and_its_share_of_alpha() -> None:
    told = {row[0].split("`")[1]: row for row in ROWS if row[0]}
    assert set(told) == set(KINDS)
    for name, kind in KINDS.items():
        assert (told[name][2], told[name][0].endswith("α")) == (kind.mode, kind.spends_alpha)


def test_the_page_has_every_setting_with_its_default() -> None:
    told: dict[tuple[str, str], str] = {}
    kind = ""
    for row in ROWS:
        kind = row[0].split("`")[1] if row[0] else kind
        for name in re.findall(r"`(\w+)`", row[3]):
            told[kind, name] = row[5]
    for name, each in KINDS.items():
        for setting_name, setting in each.settings.items():
            default = "required" if setting.is_required else setting.default
            assert told.pop((name, setting_name)) == ("" if default is None else str(default))
    assert not told


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"check": "luck"}, "unknown check 'luck'"),
        ({"check": "smoke", "settings": {"requests_min": -1}}, "requests_min must be at least 0"),
        ({"check": "smoke", "settings": {"requests_min": True}}, "must be a whole number"),
        ({"check": "smoke", "settings": {"requests_min": 1.5}}, "must be a whole number"),
        ({"check": "latency", "name": "x" * 101}, "at most 100 characters"),
        ({"check": "latency", "name": "a\0b"}, "none null"),
        ({"check": "webhook", "settings": {"url": "a\0b"}}, "url must not contain a null"),
        ({"check": "prometheus", "settings": {"query": "x", "at_most": 1e999}}, "a finite number"),
        ({"check": "prometheus", "settings": {"query": "x", "at_most": -(10**400)}}, "a finite"),
        ({"check": "error-objective"}, "needs limit_bp"),
        ({"check": "error-objective", "settings": {"limit_bp": 10_000}}, "must be at most 9999"),
        ({"check": "latency", "settings": {"p95": 1}}, "has no setting 'p95'. It has: none"),
        ({"check": "latency", "on": {"no-data": "roll back"}}, "no-data can never roll back"),
        ({"check": "latency", "on": {"provider-error": "roll back"}}, "can never roll back"),
        ({"check": "latency", "on": {"insufficient-sample": "roll back"}}, "can never roll back"),
        ({"check": "latency", "on": {"fail": "hold"}}, "'fail' cannot be set"),
    ],
)
def test_what_no_check_would_heed_is_refused_with_its_place(
    document: dict[str, Any], told: str
) -> None:
    with pytest.raises(Invalid, match=told) as refused:
        require_check(msgspec.convert(document, CheckDocument), "Step 3")
    assert refused.value.message.startswith("Step 3: ")
