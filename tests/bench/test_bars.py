"""The quick form of every bar of decisions; `./run bench-decisions` has the full form."""

from __future__ import annotations

import numpy as np
import pytest

from bench.bars import SECTIONS, Bar, bars_of, share
from bench.decisions import QUICK_RUNS, SEED


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_no_bar_of_the_section_is_missed(section: str) -> None:
    missed = [
        f"{bar.name}: {bar.measured:.4g} ± {bar.error:.2g}, bound {bar.bound:g}"
        for bar in bars_of(section, np.random.default_rng(SEED), QUICK_RUNS)
        if bar.is_missed
    ]
    assert not missed


def test_a_bar_is_missed_beyond_two_standard_errors_only() -> None:
    assert not Bar("most", measured=0.039, error=0.01, bound=0.02).is_missed
    assert Bar("most", measured=0.041, error=0.01, bound=0.02).is_missed
    assert Bar("least", measured=0.5, error=0.01, bound=0.6, is_most=False).is_missed


def test_a_figure_that_is_no_number_misses_its_bar() -> None:
    assert Bar("most", measured=float("nan"), error=0.01, bound=0.02).is_missed


def test_a_share_of_nothing_still_has_an_error() -> None:
    assert share("none", hits=0, runs=100, bound=0.02).error > 0.0
