"""The product's settings, with the values that only tests and type checks may use."""

from __future__ import annotations

import os

os.environ.setdefault("INTERLOCK_SECRET_KEY", "only-for-tests")
os.environ.setdefault("INTERLOCK_INSTANCE_TOKEN", "instance-token-of-the-tests")

from controlplane.settings import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
