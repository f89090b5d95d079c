"""Django's PostgreSQL backend that closes sessions after an error: see `base`."""
