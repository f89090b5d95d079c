"""Rollouts on a real PostgreSQL, driven by simulated instances on a simulated clock.

`database` has the server and its clock, `traffic` says what becomes of requests, `fleet` are the
instances that count them, `drive` lets time pass: windows are made by the data plane's own
telemetry, taken in by the control plane's own ingestion, and judged by its own ticks.
"""
