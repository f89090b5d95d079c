"""Published routing tables, what they changed, and the epochs of their generations."""

from __future__ import annotations

from django.db import models

from apps.models.models import ServingCluster


class ServingChange(models.Model):
    """From when on a model was served how, and who decided it. Appended, never changed."""

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
        """What tells it from every other table, also from one of its number in another database."""
        return f"{self.generation}-{self.digest[:16]}"


class Epoch(models.Model):
    """Since when generations have this epoch, and why: the database was restored.

    Generations above `restored_generation` and below this epoch's were published from the database
    that was lost. This one knows nothing of them, and nothing that was measured under them counts.
    """

    number = models.PositiveIntegerField(primary_key=True)
    restored_generation = models.BigIntegerField()
    began_at = models.DateTimeField()
    reason = models.TextField()
    actor = models.CharField(max_length=150)

    class Meta:
        ordering = ["-number"]


class ClusterOrigin(models.Model):
    """What bootstrap last gave a cluster, from the environment: what differs, people changed."""

    cluster = models.OneToOneField(ServingCluster, on_delete=models.CASCADE, primary_key=True)
    endpoints = models.JSONField()
    repository_path = models.CharField(max_length=1_000)
