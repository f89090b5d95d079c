"""The router of the REST API; each app registers its own endpoints."""

from __future__ import annotations

from rest_framework.routers import SimpleRouter

from apps.experiments.api import register as register_experiments
from apps.identity.api import register as register_identity
from apps.models.api import register as register_models
from apps.notifications.api import register as register_notifications
from apps.rollouts.api import register as register_rollouts
from apps.rollouts.governance_api import register as register_governance
from apps.rollouts.release_api import register as register_releases
from apps.rollouts.serving_api import register as register_serving

router = SimpleRouter()
register_models(router)
register_serving(router)
register_rollouts(router)
register_releases(router)
register_governance(router)
register_experiments(router)
register_notifications(router)
register_identity(router)
