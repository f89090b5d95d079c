"""Formats stored results for pages. Pure functions that compute no statistics.

A missing value is shown as a dash, never as 0.
"""
