"""Run in the environment of a stack: registers the model of the fault tests, without MLflow.

Three versions, a metric for outcomes, a plan of one quick step and one that holds half of the
traffic on the target; version 1 becomes stable as soon as the control plane's own ticks have loaded
it.
"""

from __future__ import annotations

import hashlib
import sys
from itertools import cycle
from pathlib import Path

import django
import msgspec

from tests.faults.artifact import SIGNATURE

MODEL = "flowers"
METRIC = "clicked"
PLAN = "quick"
HELD = "held"
VERSIONS = (1, 2)
# The version whose process a test kills: healing it takes a while, and nobody waits for that.
FRAGILE = 3


def main() -> None:
    """Write the rows into the database; arguments name each version's ONNX file, or one."""
    django.setup()

    from apps.experiments.models import Metric
    from apps.lib.actors import INTERLOCK
    from apps.lib.clock import database_now
    from apps.models.models import ModelVersion, RegisteredModel
    from apps.models.services import deploy_version
    from apps.rollouts.plan_store import save_plan
    from apps.rollouts.plans import PlanDocument, StepDocument
    from apps.rollouts.services import start_rollout

    artifacts = [Path(name) for name in sys.argv[1:]]
    model = RegisteredModel.objects.create(name=MODEL)
    versions = [
        ModelVersion.objects.create(
            model=model,
            number=number,
            signature=msgspec.to_builtins(SIGNATURE),
            artifact_uri="none",
            artifact_path=str(artifact),
            artifact_sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
            artifact_bytes=artifact.stat().st_size,
            created_at=database_now(),
        )
        for number, artifact in zip((*VERSIONS, FRAGILE), cycle(artifacts), strict=False)
    ]
    Metric.objects.create(name=METRIC, kind=Metric.Kind.PROPORTION)
    step = StepDocument(weight_bp=5_000, bake_s=1, checks=("error-rate",))
    plan = PlanDocument(name=PLAN, steps=(step,), interval_s=1, extend_max=60, margin_bp=500)
    save_plan(document=plan, description="", is_default=False, actor=INTERLOCK)
    step = StepDocument(weight_bp=5_000, bake_s=86_400, checks=())
    save_plan(document=PlanDocument(name=HELD, steps=(step,)), description="", actor=INTERLOCK)
    for version in versions:
        deploy_version(version=version, actor=INTERLOCK, now=database_now())
    start_rollout(model=model, target=versions[0], actor=INTERLOCK, now=database_now())


if __name__ == "__main__":
    main()
