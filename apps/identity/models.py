"""Who is who: which servers take commands from strangers."""

from __future__ import annotations

from django.db import models


class ServiceCheck(models.Model):
    """Whether a server that this installation commands asks others for a secret, when last asked.

    Whoever reaches an open Triton can run code in it; whoever reaches an open MLflow can name a
    candidate. `trouble` says why nobody knows.
    """

    class Kind(models.TextChoices):
        TRITON = "triton", "Triton"
        MLFLOW = "mlflow", "MLflow"

    address = models.CharField(max_length=1_000, primary_key=True)
    kind = models.CharField(max_length=20, choices=Kind.choices)
    # Of a Triton.
    cluster = models.CharField(max_length=100, blank=True)
    is_open = models.BooleanField()
    trouble = models.TextField(blank=True)
    checked_at = models.DateTimeField()

    class Meta:
        ordering = ["kind", "address"]

    def __str__(self) -> str:
        return self.address

    @property
    def danger(self) -> str:
        """Say what a stranger can do, or nothing."""
        if not self.is_open:
            return ""
        if self.kind == self.Kind.TRITON:
            return "anyone who reaches it can load code, which runs there"
        return "anyone who reaches it can set candidate, which starts a rollout"
