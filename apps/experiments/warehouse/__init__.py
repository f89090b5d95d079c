"""Sufficient statistics from a data warehouse, for installations larger than one PostgreSQL."""

from apps.experiments.warehouse.choice import configured_source

__all__ = ["configured_source"]
