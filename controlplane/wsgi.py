from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from apps.lib.redis_client import refuse_cluster

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
# Twice the number of the server's threads: a request may need a second session.
os.environ.setdefault("INTERLOCK_DATABASE_POOL", "8")
application = get_wsgi_application()

refuse_cluster()
