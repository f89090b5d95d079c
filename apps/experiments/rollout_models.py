"""Tables of a rollout's units and requests, for its checks on outcomes and shadows."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models

from apps.rollouts.models import Rollout


class RolloutExposure(models.Model):
    """First exposure of a unit to each side of a rollout's split, if its plan checks outcomes."""

    rollout = models.ForeignKey(
        Rollout, on_delete=models.CASCADE, related_name="exposures", db_index=False
    )
    unit = models.CharField(max_length=200)
    # The unit's bucket under the rollout's salt: buckets below the weight belong to the canary.
    bucket = models.PositiveSmallIntegerField()
    canary_at = models.DateTimeField(null=True)
    control_at = models.DateTimeField(null=True)
    # As in `ExposureRow`; None where it was not recorded: then outcomes of all tenants count.
    tenant = models.CharField(max_length=100, null=True)  # noqa: DJ001 (see above)
    also_tenants = ArrayField(models.CharField(max_length=100), null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rollout", "unit"], name="rollout_exposure_once_per_unit"
            )
        ]


class ShadowPairRow(models.Model):
    """Answers of stable and a rollout's shadow to one request; see the contract's ShadowPair.

    Class and score are None where an answer has none; `unit` is empty where a request has none.
    """

    rollout = models.ForeignKey(
        Rollout, on_delete=models.CASCADE, related_name="shadow_pairs", db_index=False
    )
    unit = models.CharField(max_length=200)
    # The request's tenant; None where it was not recorded: then outcomes of all tenants count.
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
