"""Runs the real servers and all Interlock processes on one machine, from wheels."""
