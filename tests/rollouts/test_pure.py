"""The decision core needs neither settings nor a database: simulations import it bare."""

from __future__ import annotations

import subprocess
import sys

import pytest

BARE = """
import sys
for name in sys.argv[1:]:
    __import__("apps.rollouts." + name)
"""


@pytest.mark.parametrize("name", ["checks", "comparison", "check_outcomes", "objectives", "paired"])
def test_it_is_imported_without_django_being_set_up(name: str) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", BARE, name], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
