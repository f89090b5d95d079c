"""Registers the model of the fault tests, without MLflow; runs in the environment of a stack.

It creates three versions, a metric for outcomes, a plan with one quick step and a plan that keeps
half of the traffic on the target. Version 1 becomes stable when the control plane has loaded it.
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
# The version whose process a test kills; its recovery takes a while, and no test waits for it.
FRAGILE = 3


def main() -> None:
    """Write the rows into the database; the arguments are ONNX files, one per version or one."""
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
