"""A setting is declared once: documents, the example and compose show what the code declares."""

from __future__ import annotations

import ast
import re

import pytest

from embedded import settings_pages
from embedded.state import ROOT

RENDERED = dict(settings_pages.rendered())


@pytest.mark.parametrize("name", sorted(str(path.relative_to(ROOT)) for path in RENDERED))
def test_a_file_shows_the_settings_as_they_are_declared(name: str) -> None:
    assert (ROOT / name).read_text() == RENDERED[ROOT / name], f"run {settings_pages.COMMAND}"


def test_every_setting_of_the_control_plane_is_declared() -> None:
    tree = ast.parse((ROOT / "controlplane" / "settings.py").read_text())
    read = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "env"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    declared = {variable.name for variable in settings_pages.control_plane()}
    assert {str(name) for name in read} <= declared
    assert all(variable.help for variable in settings_pages.control_plane())


def test_every_variable_that_a_document_names_is_declared() -> None:
    declared = {each.name for rows in settings_pages.sections().values() for each in rows}
    named = set()
    for path in (ROOT / "docs").glob("*.md"):
        named |= set(re.findall(r"`(INTERLOCK_[A-Z_]+[A-Z])`", path.read_text()))
    assert named <= declared


def test_a_default_that_is_empty_is_the_code_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose passes a variable that nobody set as an empty one."""
    from controlplane import env
    from dataplane import config

    for variable in (*config.variables(), *settings_pages.control_plane()):
        if not variable.is_required:
            monkeypatch.setenv(variable.name, "")
    assert env.text("INTERLOCK_WAREHOUSE_EXPOSURES", "exposures") == "exposures"
    assert env.items("INTERLOCK_ALLOWED_HOSTS", "localhost") == ["localhost"]
    monkeypatch.setenv("INTERLOCK_BIND", "127.0.0.1:0")
    for name in ("INTERLOCK_INSTANCE_TOKEN", "INTERLOCK_INSTANCE_NAME", "INTERLOCK_STATE_DIR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("INTERLOCK_CONTROL_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:6379/0")
    assert config.load_own().poll_interval_s == 2.0
