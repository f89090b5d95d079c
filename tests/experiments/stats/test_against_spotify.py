"""Welch's test and non-inferiority margins equal those of spotify-confidence.

Its package imports chart libraries that are not installed; empty modules replace them. Its data
frames need an older pandas, so that the test calls its functions directly.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import read_fixed
from apps.experiments.stats.data import MetricSpec
from apps.experiments.stats.estimates import Estimate, compare
from apps.experiments.stats.margins import judge_margin

DRAWING = ["chartify", "ipywidgets", "IPython", "IPython.display"]
DRAWING += ["bokeh", "bokeh.models", "bokeh.models.tools"]
REL = 1e-6
ALPHA = 0.05
SPEC = MetricSpec("m", "guardrail", "mean", margin=0.5)


class Nothing(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture(scope="module")
def theirs() -> Any:
    missing = [name for name in DRAWING if name not in sys.modules]
    with pytest.MonkeyPatch.context() as patch:
        for name in missing:
            patch.setitem(sys.modules, name, Nothing(name))
        root = "spotify_confidence.analysis.frequentist.confidence_computers"
        yield importlib.import_module(f"{root}.t_test_computer")


@pytest.fixture(params=[(2_000, 2_000), (1_900, 100), (6, 9)], ids=["even", "uneven", "few"])
def values(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    rng = np.random.default_rng(sum(request.param))
    return rng.lognormal(2, 1, request.param[0]), rng.lognormal(2.1, 1, request.param[1])


def their_test(theirs: Any, values: tuple[Any, Any], alternative: str, null: float) -> Any:
    """Return p-value and interval of their functions, from sufficient statistics."""
    names = {
        "numerator": "sum",
        "numerator_sum_of_squares": "squares",
        "denominator": "n",
    }
    rows = pd.DataFrame(
        {"sum": [v.sum() for v in values], "squares": [(v**2).sum() for v in values],
         "n": [len(v) for v in values]}
    )  # fmt: skip
    rows["point_estimate"] = theirs.point_estimate(rows, **names)
    rows["variance"] = theirs.variance(rows, **names)
    pair = pd.DataFrame(
        {f"{name}_{i + 1}": [rows[name][i]] for name in rows.columns for i in (0, 1)}
    )
    pair["std_err"] = theirs.std_err(pair, **names)
    pair["difference"] = pair["point_estimate_2"] - pair["point_estimate_1"]
    pair["null_hypothesis"], pair["alpha"] = null, ALPHA
    pair["preference_used_in_test"] = alternative
    low, high = theirs.ci(pair, "alpha", **names)
    return theirs.p_value(pair, **names)[0], np.ravel(low)[0], np.ravel(high)[0]


def ours(values: tuple[Any, Any]) -> Estimate:
    spec = MetricSpec("m", "primary", "mean")
    arms = [Comoments.of(arm.reshape(-1, 1)) for arm in values]
    # Their functions use two moments only.
    return compare(spec, *(Comoments(arm.n, arm.means, arm.products) for arm in arms))


def test_a_difference_is_the_same(theirs: Any, values: tuple[Any, Any]) -> None:
    p_value, low, high = their_test(theirs, values, "two-sided", 0.0)

    reading = read_fixed(ours(values).difference, ALPHA)

    assert reading.p_value == pytest.approx(p_value, rel=REL)
    assert (reading.low, reading.high) == pytest.approx((low, high), rel=REL)


def test_a_guardrail_is_not_worse_where_their_test_against_the_margin_rejects(
    theirs: Any, values: tuple[Any, Any]
) -> None:
    p_value, low, _ = their_test(theirs, values, "larger", -0.5)

    verdict = judge_margin(
        SPEC, ours(values), None, alpha=ALPHA, planned_units=1_000, is_final=True, is_worse=False,
        stop_reason="",
    )  # fmt: skip

    assert verdict is not None
    assert verdict.bound == pytest.approx(low, rel=REL)
    assert (verdict.state == "not-worse") == (p_value < ALPHA)
