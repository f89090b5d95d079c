"""Reads for the pages of experiments."""
