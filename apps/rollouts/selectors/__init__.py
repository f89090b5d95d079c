"""Reads for pages and the API."""
