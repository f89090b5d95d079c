"""Deletes expired rows: `declared` lists the kinds, `drops` deletes each, `run` runs all kinds in
bounded steps and records the freed space.
"""
