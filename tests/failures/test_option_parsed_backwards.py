"""An environment option was used only when it failed to parse (argo-rollouts `defaults.go`).

Each reader gives what was set when it can be understood, the default when nothing is set, and
refuses anything else by name; and each variable that a settings file reads takes effect.
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
# More than any least value that a setting takes.
LARGE = 2_000_000_011
GOOD: list[tuple[Any, str, Any, Any]] = [
    (env.integer, "17", 3, 17),
    (env.flag, "yes", False, True),
    (env.flag, "0", True, False),
    (env.text, "here", "there", "here"),
]


@pytest.mark.parametrize(("read", "value", "default", "expected"), GOOD)
def test_what_is_set_is_used_and_the_default_only_without(
    monkeypatch: pytest.MonkeyPatch, read: Any, value: str, default: Any, expected: Any
) -> None:
    monkeypatch.setenv("OPTION", value)
    assert read("OPTION", default) == expected
    monkeypatch.delenv("OPTION")
    assert read("OPTION", default) == default


@pytest.mark.parametrize(("read", "default"), [(env.integer, 3), (env.flag, False)])
def test_what_cannot_be_understood_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, read: Any, default: Any
) -> None:
    monkeypatch.setenv("OPTION", "perhaps")
    with pytest.raises(env.SettingError, match="OPTION"):
        read("OPTION", default)


def test_each_number_and_flag_of_the_settings_takes_effect() -> None:
    """All are set to something else than their default, and each name must have that value then."""
    found = READ.findall(SETTINGS.read_text())
    assert len(found) >= 5
    other = {"flag": {"True": False, "False": True}}
    wanted = {
        name: other[kind][default] if kind == "flag" else LARGE for name, kind, _, default in found
    }
    texts = {variable: str(int(wanted[name])) for name, _, variable, _ in found}
    code = (
        "import json, controlplane.settings as s; print(json.dumps({n: getattr(s, n) for n in %r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code % list(wanted)],
        cwd=ROOT,
        env={**os.environ, **texts},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted
