"""The kinds of checks match docs/checks.md: every example, mode, setting and default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apps.experiments.models import Metric
from apps.lib.errors import Invalid
from apps.rollouts.check_kinds import KINDS, CheckDocument, problem_of_check, require_check

PAGE = (Path(__file__).parents[2] / "docs" / "checks.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PAGE.split("## Kinds")[1].splitlines()
    if line.startswith("| ") and line.count("|") == 7 and "---" not in line
][1:]


@pytest.mark.django_db
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_page_is_valid(example: str) -> None:
    Metric.objects.create(name="accuracy", kind=Metric.Kind.PROPORTION)
    for name in ("label", "delivered_minutes"):
        Metric.objects.create(name=name, kind=Metric.Kind.MEAN)
    check = msgspec.json.decode(example, type=CheckDocument)
    assert problem_of_check(check) == ""


def test_the_page_has_every_kind_with_its_mode_and_its_share_of_alpha() -> None:
    documented = {row[0].split("`")[1]: row for row in ROWS if row[0]}
    assert set(documented) == set(KINDS)
    for name, kind in KINDS.items():
        assert (documented[name][2], documented[name][0].endswith("α")) == (
            kind.mode,
            kind.spends_alpha,
        )


def test_the_page_has_every_setting_with_its_default() -> None:
    documented: dict[tuple[str, str], str] = {}
    kind = ""
    for row in ROWS:
        kind = row[0].split("`")[1] if row[0] else kind
        for name in re.findall(r"`(\w+)`", row[3]):
            documented[kind, name] = row[5]
    for name, each in KINDS.items():
        for setting_name, setting in each.settings.items():
            default = "required" if setting.is_required else setting.default
            assert documented.pop((name, setting_name)) == ("" if default is None else str(default))
    assert not documented


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"check": "luck"}, "unknown kind 'luck'; expected one of error-rate, "),
        ({"check": "smoke", "settings": {"requests_min": -1}}, "requests_min must be at least 0"),
        ({"check": "smoke", "settings": {"requests_min": True}}, "must be a whole number"),
        ({"check": "smoke", "settings": {"requests_min": 1.5}}, "must be a whole number"),
        ({"check": "latency", "name": "x" * 101}, "at most 100 characters"),
        ({"check": "latency", "name": "a\0b"}, "no null character"),
        ({"check": "webhook", "settings": {"url": "a\0b"}}, "url must not contain a null"),
        ({"check": "prometheus", "settings": {"query": "x", "at_most": 1e999}}, "a finite number"),
        ({"check": "prometheus", "settings": {"query": "x", "at_most": -(10**400)}}, "a finite"),
        ({"check": "error-objective"}, "limit_bp is required"),
        ({"check": "error-objective", "settings": {"limit_bp": 10_000}}, "must be at most 9999"),
        (
            {"check": "latency", "settings": {"p95": 1}},
            "unknown setting 'p95'; this kind has no settings",
        ),
        (
            {"check": "latency", "on": {"no-data": "roll back"}},
            "on: no-data cannot roll back; only inconclusive can",
        ),
        ({"check": "latency", "on": {"provider-error": "roll back"}}, "cannot roll back"),
        ({"check": "latency", "on": {"insufficient-sample": "roll back"}}, "cannot roll back"),
        (
            {"check": "latency", "on": {"fail": "hold"}},
            "on: 'fail' cannot be set; expected one of inconclusive",
        ),
    ],
)
def test_an_invalid_check_is_refused_with_its_step(document: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message) as refused:
        require_check(msgspec.convert(document, CheckDocument), "Step 3")
    assert refused.value.message.startswith("Step 3: ")
