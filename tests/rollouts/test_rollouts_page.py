"""docs/rollouts.md says what there is: each setting with its default, commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apps.rollouts.overrides import Override
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, StepDocument, plan_settings, step_settings
from cli.main import _parser

TEXT = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]
COMMANDS = re.findall(r"^(interlock .*?)(?: +#.*| > .*)?$", TEXT, re.MULTILINE)


def defaults(document: type[msgspec.Struct]) -> dict[str, Any]:
    return {f.name: f.default for f in msgspec.structs.fields(document) if not f.required}


def test_each_setting_stands_there_with_its_default() -> None:
    rows = [row for row in ROWS if len(row) > 2]
    described = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    known = {**defaults(PlanDocument), **defaults(StepDocument)}
    for name in (*plan_settings(), *step_settings()):
        assert name in described
        default = known.get(name, "")
        text = ", ".join(default) if isinstance(default, tuple) else str(default)
        assert name in {"name", "weight_bp"} or described[name][2] == text


def test_each_template_and_each_override_stands_there() -> None:
    first = {row[0].strip("`") for row in ROWS}
    assert {template.document.name for template in TEMPLATES} <= first
    assert set(Override.values) <= first


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one(command: str) -> None:
    assert _parser().parse_args(shlex.split(command)[1:]).command


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 10
