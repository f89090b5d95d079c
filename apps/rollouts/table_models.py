"""Tables of published routing tables, serving changes and epochs."""

from __future__ import annotations

from django.db import models

from apps.models.models import ServingCluster


class ServingChange(models.Model):
    """How a model was served from `at` on, and who decided it. Append-only."""

    model_name = models.CharField(max_length=100)
    at = models.DateTimeField()
    generation = models.BigIntegerField()
    # Empty when the model has no stable version.
    stable = models.CharField(max_length=20, blank=True)
    # The contract's split and shadow, or null.
    split = models.JSONField(null=True)
    shadow = models.JSONField(null=True)
    reason = models.TextField()
    actor = models.CharField(max_length=150)

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["model_name", "-id"])]


class PublishedTable(models.Model):
    """A routing table as it was published; `generation` only grows."""

    generation = models.BigIntegerField(primary_key=True)
    digest = models.CharField(max_length=64)
    document = models.BinaryField()
    reason = models.TextField()
    actor = models.CharField(max_length=150)
    published_at = models.DateTimeField()

    class Meta:
        ordering = ["-generation"]

    @property
    def tag(self) -> str:
        """A unique tag, also among tables with this generation in other databases."""
        return f"{self.generation}-{self.digest[:16]}"


class Epoch(models.Model):
    """The start of an epoch after a restore of the database.

    Generations above `restored_generation` and below those of this epoch were published from the
    lost database. They are unknown here, and measurements under them do not count.
    """

    number = models.PositiveIntegerField(primary_key=True)
    restored_generation = models.BigIntegerField()
    began_at = models.DateTimeField()
    reason = models.TextField()
    actor = models.CharField(max_length=150)

    class Meta:
        ordering = ["-number"]


class ClusterOrigin(models.Model):
    """The last values of a cluster from the environment; differing ones were changed by people."""

    cluster = models.OneToOneField(ServingCluster, on_delete=models.CASCADE, primary_key=True)
    endpoints = models.JSONField()
    repository_path = models.CharField(max_length=1_000)
