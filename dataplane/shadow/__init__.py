"""Copies of stable's requests to a shadow version, and how its answers differ.

`mirror` decides which requests are copied and enforces the budget, `comparison` compares two
answers, `counting` sums up the differences. Nothing here may slow or fail a live request: what
exceeds the budget is dropped and counted.
"""
