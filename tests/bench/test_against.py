"""Ratios between two commits' data planes, and the error for an unknown commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.against import Ratio, clone


def test_a_ratio_is_the_geometric_mean_over_rounds() -> None:
    ratio = Ratio.of([2.0, 8.0], [1.0, 2.0])
    assert ratio.mean == pytest.approx(8.0**0.5)
    assert ratio.error > 0.0


def test_equal_rounds_have_no_error() -> None:
    assert str(Ratio.of([3.0, 5.0], [3.0, 5.0])) == "1.000 ± 0.000"


def test_an_unknown_commit_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no-such-commit: "):
        clone("no-such-commit", tmp_path / "source")
