"""Sequential test of counts against configured shares; it may be read at every look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]

CONCENTRATION = 10_000.0


def log_bayes_factors(counts: Array, shares: Array) -> Array:
    """ln of the Dirichlet-multinomial marginal likelihood over the configured multinomial's.

    `counts` has shape `(…, arms)` and `shares`, which are positive and sum to 1, shape `(arms,)`;
    the result has shape `(…)`. Prior Dirichlet(k·shares) with k = 10,000 (Lindon and Malek 2020).
    It is a martingale under the configured shares, so reaching 1/α at any time refutes them at
    level α. Counts may be fractions: those of overdispersed counts, divided by their dispersion.
    """
    prior = CONCENTRATION * shares
    marginal = gammaln(CONCENTRATION) - gammaln(CONCENTRATION + counts.sum(axis=-1))
    marginal += (gammaln(prior + counts) - gammaln(prior)).sum(axis=-1)
    result: Array = marginal - (counts * np.log(shares)).sum(axis=-1)
    return result
