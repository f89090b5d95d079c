"""The product's settings, with the values that only tests and type checks may use."""

from __future__ import annotations

import os
import secrets

os.environ.setdefault("INTERLOCK_SECRET_KEY", secrets.token_urlsafe(48))
os.environ.setdefault("INTERLOCK_INSTANCE_TOKEN", secrets.token_urlsafe(48))
# Tritons that tests start take it from here, as the tests' control plane does.
os.environ.setdefault("INTERLOCK_TRITON_TOKEN", secrets.token_urlsafe(48))
# Receivers of the tests listen on loopback.
os.environ.setdefault("INTERLOCK_WEBHOOK_ALLOWED", "127.0.0.0/8,::1")

from controlplane.settings import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# In tests no loop turns, and pages should look as they do when all do.
LOOP_LATE_S = 1_000_000_000
