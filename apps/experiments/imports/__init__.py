"""Outcomes from files: read row by row, judged each for itself, recorded in bounded steps."""
