"""Reads for pages: what traffic there was, what serves what, how a rollout stands, who serves."""
