"""Starts the real servers and all of our processes on one machine, from wheels."""
