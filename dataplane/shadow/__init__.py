"""Copies of stable's requests to a shadow version, and how its answers differ.

`mirror` decides which copies leave and holds their budget, `comparison` says how two answers
differ, `counting` adds that up. Nothing here may slow or fail a live request: what cannot be
afforded is dropped and counted.
"""
