"""What is kept of a rollout's units and requests, for its checks on outcomes and shadows."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models

from apps.rollouts.models import Rollout


class RolloutExposure(models.Model):
    """When a unit first met each side of a rollout's split; kept where a plan asks for outcomes."""

    rollout = models.ForeignKey(
        Rollout, on_delete=models.CASCADE, related_name="exposures", db_index=False
    )
    unit = models.CharField(max_length=200)
    # Where the unit stands under the rollout's salt: the canary's are those below its weight.
    bucket = models.PositiveSmallIntegerField()
    canary_at = models.DateTimeField(null=True)
    control_at = models.DateTimeField(null=True)
    # As of an experiment's exposure; None where it was not recorded, and then anybody's outcomes
    # count.
    tenant = models.CharField(max_length=100, null=True)  # noqa: DJ001 (see above)
    also_tenants = ArrayField(models.CharField(max_length=100), null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rollout", "unit"], name="rollout_exposure_once_per_unit"
            )
        ]


class ShadowPairRow(models.Model):
    """What stable and a rollout's shadow answered to one request; see the contract's ShadowPair.

    An answer without a class or score has None there, a request without a unit an empty one.
    """

    rollout = models.ForeignKey(
        Rollout, on_delete=models.CASCADE, related_name="shadow_pairs", db_index=False
    )
    unit = models.CharField(max_length=200)
    # Whose request it was; None where it was not recorded, and then anybody's outcomes count.
    tenant = models.CharField(max_length=100, null=True)  # noqa: DJ001 (see above)
    request_hash = models.BigIntegerField()
    at = models.DateTimeField()
    stable_class = models.FloatField(null=True)
    shadow_class = models.FloatField(null=True)
    stable_score = models.FloatField(null=True)
    shadow_score = models.FloatField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rollout", "unit"],
                condition=~models.Q(unit=""),
                name="shadow_pair_once_per_unit",
            ),
            models.UniqueConstraint(
                fields=["rollout", "request_hash"], name="shadow_pair_once_per_request"
            ),
        ]
