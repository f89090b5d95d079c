"""Simulates rollouts on a real PostgreSQL, with simulated instances and a simulated clock.

`database` has the server and its clock, `traffic` the requests and their results, `fleet` the
instances that count them, and `drive` advances the time. The data plane's own telemetry creates the
windows; the control plane's own ingestion stores them, and its own ticks evaluate them.
"""
