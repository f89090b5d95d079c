"""Sufficient statistics from a warehouse, for those who outgrow one PostgreSQL."""

from apps.experiments.warehouse.choice import the_source

__all__ = ["the_source"]
