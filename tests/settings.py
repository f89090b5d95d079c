"""The product's settings, with the values that only tests and type checks may use."""

from __future__ import annotations

import os

os.environ.setdefault("INTERLOCK_SECRET_KEY", "only-for-tests")
os.environ.setdefault("INTERLOCK_INSTANCE_TOKEN", "instance-token-of-the-tests")

from controlplane.settings import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Static files need no directory in tests, and its absence would be a warning, hence an error.
MIDDLEWARE = [name for name in MIDDLEWARE if "whitenoise" not in name]  # noqa: F405
# In tests no loop turns, and pages should look as they do when all do.
LOOP_LATE_S = 1_000_000_000
