"""An environment option was used only when it failed to parse (argo-rollouts `defaults.go`).

Here each reader returns a valid value, or the default if nothing is set, and refuses an invalid
value with the variable's name; and each variable that the settings read takes effect.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane import env

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "controlplane" / "settings.py"
READ = re.compile(r'^(\w+) = env\.(integer|flag)\(\s*"(\w+)",\s*([\w]+)', re.M)
# More than the minimum of any setting.
LARGE = 2_000_000_011
GOOD: list[tuple[Any, str, Any, Any]] = [
    (env.integer, "17", 3, 17),
    (env.flag, "yes", False, True),
    (env.flag, "0", True, False),
    (env.text, "here", "there", "here"),
]


@pytest.mark.parametrize(("read", "value", "default", "expected"), GOOD)
def test_a_set_value_is_used_and_the_default_only_without(
    monkeypatch: pytest.MonkeyPatch, read: Any, value: str, default: Any, expected: Any
) -> None:
    monkeypatch.setenv("OPTION", value)
    assert read("OPTION", default) == expected
    monkeypatch.delenv("OPTION")
    assert read("OPTION", default) == default


@pytest.mark.parametrize(("read", "default"), [(env.integer, 3), (env.flag, False)])
def test_an_invalid_value_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, read: Any, default: Any
) -> None:
    monkeypatch.setenv("OPTION", "perhaps")
    with pytest.raises(env.SettingError, match="OPTION"):
        read("OPTION", default)


def test_each_number_and_flag_of_the_settings_takes_effect() -> None:
    """Set all variables to values other than their defaults; each setting must have its value."""
    variables = READ.findall(SETTINGS.read_text())
    assert len(variables) >= 5
    other = {"flag": {"True": False, "False": True}}
    expected = {
        name: other[kind][default] if kind == "flag" else LARGE
        for name, kind, _, default in variables
    }
    texts = {variable: str(int(expected[name])) for name, _, variable, _ in variables}
    code = (
        "import json, controlplane.settings as s; print(json.dumps({n: getattr(s, n) for n in %r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code % list(expected)],
        cwd=ROOT,
        env={**os.environ, **texts},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
