"""Django's PostgreSQL, with sessions that are given up after an error: see `base`."""
