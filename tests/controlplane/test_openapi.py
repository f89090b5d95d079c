"""The OpenAPI document is valid and has readable names, as clients are generated from it."""

from __future__ import annotations

from pathlib import Path

import yaml
from django.core.management import call_command


def test_it_is_valid_and_generated_without_warnings(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"

    call_command("spectacular", "--fail-on-warn", "--validate", file=str(path))

    document = yaml.safe_load(path.read_text())
    assert "/api/v1/releases/{id}/abort/" in document["paths"]
    assert not [name for name in document["components"]["schemas"] if any(map(str.isdigit, name))]
