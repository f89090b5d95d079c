"""An arm without errors gave "zero variance, p = 1" and hid 12 in 1,000 on the other side."""

from __future__ import annotations

import pytest

from apps.experiments.stats.comparison import compare_rates, fisher_p, read_fixed


@pytest.mark.parametrize("swap", [False, True])
def test_0_of_1000_against_12_of_1000_is_significant(swap: bool) -> None:
    arms = (1_000, 12, 1_000, 0) if swap else (1_000, 0, 1_000, 12)
    assert fisher_p(*arms) == pytest.approx(0.0005, abs=5e-5)
    reading = read_fixed(compare_rates(*arms), alpha=0.05)
    assert reading.is_significant
    assert reading.p_value is not None
    assert reading.p_value < 0.001
