"""Logs the demo's classifiers to MLflow: run, parameters, metrics, data and model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from embedded.demo.classifiers import Classifier, Digits

MODEL = "digits"
# A separate model for the A/A test, since a model has only one split at a time.
TWIN = "digits-twin"


# The environment variables of MLflow's client: URL and login.
TRACKING = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def register_all(
    classifiers: list[Classifier], digits: Digits, environment: Mapping[str, str]
) -> None:
    """Log and register each classifier as a version of `digits`; the first also as the twin."""
    os.environ.update({name: environment[name] for name in TRACKING})
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    warnings.filterwarnings("ignore", module=r"mlflow|google|pydantic")
    import logging

    import mlflow

    # Its warnings are about pip environments, which the demo does not use.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
    mlflow.set_experiment(MODEL)
    for classifier in classifiers:
        _register(mlflow, MODEL, classifier, digits)
    _register(mlflow, TWIN, classifiers[0], digits)


def _register(mlflow: Any, model: str, classifier: Classifier, digits: Digits) -> None:
    import mlflow.onnx
    import onnxruntime
    from mlflow.models import infer_signature

    session = onnxruntime.InferenceSession(
        classifier.onnx.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    # Zeros, on which `broken` does not fail.
    sample = digits.held_x[:2] * 0
    names = [item.name for item in session.get_outputs()]
    answers = dict(zip(names, session.run(None, {"X": sample}), strict=True))
    with mlflow.start_run(run_name=classifier.kind):
        mlflow.log_params({"kind": classifier.kind, **classifier.parameters})
        mlflow.log_metric("accuracy", classifier.accuracy)
        data = mlflow.data.from_numpy(digits.train_x, targets=digits.train_y, name=MODEL)
        mlflow.log_input(data, context="training")
        mlflow.onnx.log_model(
            classifier.onnx,
            name="model",
            registered_model_name=model,
            signature=infer_signature({"X": sample}, answers),
            pip_requirements=["onnxruntime"],
        )
