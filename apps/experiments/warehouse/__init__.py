"""Sufficient statistics from a warehouse, for those who outgrow one PostgreSQL."""

from apps.experiments.warehouse.choice import configured_source

__all__ = ["configured_source"]
