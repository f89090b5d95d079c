"""The settings of the control plane, with values for tests and type checks only."""

from __future__ import annotations

import os
import secrets

os.environ.setdefault("INTERLOCK_SECRET_KEY", secrets.token_urlsafe(48))
os.environ.setdefault("INTERLOCK_INSTANCE_TOKEN", secrets.token_urlsafe(48))
# Used by the Tritons that tests start and by the tests' control plane.
os.environ.setdefault("INTERLOCK_TRITON_TOKEN", secrets.token_urlsafe(48))
# Receivers of the tests listen on loopback.
os.environ.setdefault("INTERLOCK_WEBHOOK_ALLOWED", "127.0.0.0/8,::1")

from controlplane.settings import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# In tests no loop runs, but pages should look as if all do.
LOOP_LATE_S = 1_000_000_000
