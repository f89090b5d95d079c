"""Queries for the pages of experiments."""
