"""The imports of each process at its start: on a busy machine they take most of the start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from embedded.state import ROOT

# Each takes seconds or tens of megabytes; it is imported only where it is used.
HEAVY = {
    "scipy.stats", "duckdb", "plotly", "mlflow", "pandas", "sklearn", "onnxruntime", "kubernetes",
    "ibis", "tritonclient", "grpc", "prompt_toolkit",
}  # fmt: skip
DJANGO = "import django; django.setup(); "
PROCESSES = {
    "web": (DJANGO + "import controlplane.urls", HEAVY | {"celery"}),
    "ingest": (DJANGO + "import controlplane.management.commands.ingest", HEAVY | {"celery"}),
    "worker": (
        "import controlplane.worker as w; w.app.loader.import_default_modules()",
        HEAVY | {"controlplane.urls", "rest_framework.views"},
    ),
    "beat": ("import controlplane.beat as b; b.app.finalize()", HEAVY | {"numpy", "django.db"}),
    "data plane, parent": ("import dataplane.__main__", HEAVY | {"numpy", "httpx", "redis"}),
    "data plane, worker": ("import dataplane.worker", HEAVY | {"scipy"}),
    "supervisor": ("import embedded.__main__", HEAVY | {"numpy", "httpx", "django"}),
}
ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "tests.settings",
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "REDIS_URL": "redis://127.0.0.1:1/0",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_does_not_import_unused_packages(name: str) -> None:
    code, unwanted = PROCESSES[name]
    show = f"import sys; print(*sorted({unwanted!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.split() == []
